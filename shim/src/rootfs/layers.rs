//! A root file system of EROFS images, as containerd's erofs snapshotter hands it over (containerd 2.2,
//! `plugins/snapshots/erofs`, and `docs/mounts.md` for the words in braces):
//!
//! ```text
//!   ext4   …/rwlayer.img                   what is written, where the snapshotter keeps it in a file
//!   erofs  …/layer.erofs      highest      one for each layer
//!   erofs  …/layer.erofs      lowest
//!   format/mkdir/overlay   upperdir={{ mount 0 }}/upper  lowerdir={{ overlay 1 2 }}
//! ```
//!
//! containerd leaves these to a shim that says so (`-info`), and each file becomes a disk of the VM: nothing is
//! unpacked or mounted on the host. Where the snapshotter has a directory of the host for what is written, the guest
//! has one of its own.

use containerd_shim_protos::types::mount::Mount;

use super::RootfsError;

/// What the shim mounts itself, as containerd is told it.
pub const ALLOWED: &str = "mkdir/*,format/*,erofs";
const LAYER: &str = "erofs";
const OVERLAY: &str = "overlay";
const WRITABLE: &str = "ext4";
/// The longest stack: each layer is a disk.
const MAX_LAYERS: usize = 64;
/// What the guest's own overlay does in its own way.
const OF_HOSTS_OVERLAY: [&str; 5] = [
    "index=",
    "metacopy=",
    "redirect_dir=",
    "volatile",
    "X-containerd.mkdir",
];

/// The files of one root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layers {
    /// EROFS images, the highest first.
    pub lowers: Vec<String>,
    /// The ext4 for what is written; without one that is the guest's.
    pub writable: Option<String>,
}

/// The layers of a root file system, where that is what it is made of.
pub(super) fn of(mounts: &[Mount]) -> Option<Result<Layers, RootfsError>> {
    let (last, parts) = mounts.split_last()?;
    let kind = last.type_.rsplit('/').next().unwrap_or_default();
    let is_stack = kind == OVERLAY && parts.iter().any(|part| part.type_ == LAYER);
    is_stack.then(|| read(parts, &last.options).map_err(RootfsError::Layers))
}

fn read(parts: &[Mount], options: &[String]) -> Result<Layers, String> {
    let mut layers = Layers::default();
    for option in options {
        match option.split_once('=') {
            Some(("lowerdir", named)) => layers.lowers = lowers(parts, named)?,
            Some(("upperdir", named)) => layers.writable = writable(parts, named)?,
            // Beside the other.
            Some(("workdir", _)) => {}
            _ if option.is_empty() => {}
            _ if OF_HOSTS_OVERLAY
                .iter()
                .any(|known| option.starts_with(known)) => {}
            _ => return Err(format!("option {option:?} of the overlay is not supported")),
        }
    }
    match layers.lowers.len() {
        1..=MAX_LAYERS => Ok(layers),
        count => Err(format!("{count} layers: use 1 to {MAX_LAYERS}")),
    }
}

/// `{{ overlay FIRST LAST }}` or `{{ mount N }}`.
fn lowers(parts: &[Mount], named: &str) -> Result<Vec<String>, String> {
    let words = template(named).unwrap_or_default();
    let range = match words.as_slice() {
        ["overlay", first, last] => first.parse().ok().zip(last.parse::<usize>().ok()),
        ["mount", one] => one.parse().ok().map(|one| (one, one)),
        _ => None,
    };
    let range = range.and_then(|(first, last): (usize, usize)| parts.get(first..=last));
    let range = range.ok_or_else(|| format!("lowerdir={named} names none of its mounts"))?;
    range.iter().map(layer).collect()
}

fn layer(mount: &Mount) -> Result<String, String> {
    if mount.type_ != LAYER {
        return Err(format!("a layer is {:?}: use {LAYER}", mount.type_));
    }
    for option in &mount.options {
        let fix = match option.as_str() {
            "ro" | "loop" => continue,
            other if other.starts_with("device=") => {
                "layers that are merged in one index: set max_unmerged_layers = 0"
            }
            other if other.starts_with("X-containerd.dmverity") => {
                "dm-verity of the host's layers: set dmverity_mode = \"off\""
            }
            _ => "the option is not supported",
        };
        let shown: String = option.chars().take(64).collect();
        return Err(format!("{}: {shown:?}: {fix}", mount.source));
    }
    Ok(mount.source.clone())
}

/// `{{ mount N }}/upper`; a directory of the host stays there.
fn writable(parts: &[Mount], named: &str) -> Result<Option<String>, String> {
    let Some(words) = template(named.trim_end_matches("/upper")) else {
        return match named.contains("{{") {
            true => Err(format!("upperdir={named} is none of its mounts")),
            false => Ok(None),
        };
    };
    let part = match words.as_slice() {
        ["mount", number] => number.parse().ok().and_then(|at: usize| parts.get(at)),
        _ => None,
    };
    match part {
        Some(part) if part.type_ == WRITABLE => Ok(Some(part.source.clone())),
        _ => Err(format!("upperdir={named} is on no {WRITABLE}")),
    }
}

/// The words in double braces, where that is all there is.
fn template(text: &str) -> Option<Vec<&str>> {
    let inner = text.strip_prefix("{{")?.strip_suffix("}}")?;
    Some(inner.split_ascii_whitespace().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            type_: kind.into(),
            source: source.into(),
            options: options.iter().map(|one| (*one).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn erofs(source: &str) -> Mount {
        mount("erofs", source, &["ro", "loop"])
    }

    fn stack(options: &[&str]) -> Mount {
        mount("format/mkdir/overlay", "overlay", options)
    }

    #[test]
    fn what_the_snapshotter_gives_is_a_stack_with_and_without_a_file_for_what_is_written() {
        let own = of(&[
            erofs("/s/3/layer.erofs"),
            erofs("/s/2/layer.erofs"),
            stack(&[
                "workdir=/s/4/work",
                "upperdir=/s/4/fs",
                "lowerdir={{ overlay 0 1 }}",
            ]),
        ]);
        let own = own.unwrap().unwrap();
        assert_eq!(own.lowers, ["/s/3/layer.erofs", "/s/2/layer.erofs"]);
        assert_eq!(own.writable, None);
        let block = of(&[
            mount("ext4", "/s/4/rwlayer.img", &["rw", "loop"]),
            erofs("/s/2/layer.erofs"),
            stack(&[
                "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                "workdir={{ mount 0 }}/work",
                "upperdir={{ mount 0 }}/upper",
                "lowerdir={{ mount 1 }}",
            ]),
        ]);
        let block = block.unwrap().unwrap();
        assert_eq!(block.lowers, ["/s/2/layer.erofs"]);
        assert_eq!(block.writable.as_deref(), Some("/s/4/rwlayer.img"));
    }

    #[test]
    fn what_would_not_be_done_is_refused_and_what_is_no_stack_is_none() {
        let told = |mounts: &[Mount]| of(mounts).unwrap().unwrap_err().to_string();
        let lower = stack(&["lowerdir={{ mount 0 }}"]);
        let merged = mount("erofs", "/l", &["ro", "device=/a"]);
        assert!(told(&[merged, lower.clone()]).contains("max_unmerged_layers"));
        let verity = mount("erofs", "/l", &["X-containerd.dmverity=/l.dmverity"]);
        assert!(told(&[verity, lower.clone()]).contains("dmverity_mode"));
        for options in [
            &["lowerdir={{ overlay 0 9 }}"][..],
            &["lowerdir={{ overlay 1 0 }}"],
            &["lowerdir=/etc"],
            &["lowerdir={{ mount 0 }}", "upperdir={{ mount 0 }}/upper"],
            &["lowerdir={{ mount 0 }}", "uidmap=0:1:1"],
            &[],
        ] {
            told(&[erofs("/l"), stack(options)]);
        }
        assert!(of(&[mount("overlay", "overlay", &["lowerdir=/a:/b"])]).is_none());
        assert!(of(&[erofs("/l")]).is_none());
        assert!(of(&[]).is_none());
    }
}
