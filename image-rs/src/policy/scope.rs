//! Which entry of a policy counts for an image, and which entries can count at all.

use crate::reference::Reference;

/// From the most specific scope to the least: image, repository, namespaces, host, `*.` of its domains, everything.
pub(crate) fn of(image: &Reference) -> Vec<String> {
    let mut scopes = Vec::new();
    // containers/image looks a reference with a digest up by the digest, and never by its tag.
    scopes.push(match image.digest() {
        Some(digest) => format!("{}@{digest}", image.name()),
        None => image.to_string(),
    });
    let name = image.name();
    let mut rest = name.as_str();
    scopes.push(rest.to_owned());
    while let Some((parent, _)) = rest.rsplit_once('/') {
        scopes.push(parent.to_owned());
        rest = parent;
    }
    let host = if image.registry().starts_with('[') {
        ""
    } else {
        image.registry()
    };
    let mut host = host.split_once(':').map_or(host, |(host, _)| host);
    while let Some((_, domain)) = host.split_once('.') {
        scopes.push(format!("*.{domain}"));
        host = domain;
    }
    scopes.push(String::new());
    scopes
}

/// Refuses a scope that could never count. Transports that we do not know are left alone, as containers/image does.
pub(super) fn check(transport: &str, scope: &str) -> Result<(), String> {
    if scope.is_empty() {
        return Ok(());
    }
    match transport {
        "docker" if !can_count(scope) => Err(
            "no image has this scope: write host[:port][/namespace][:tag or @digest] in lower case, without a scheme \
             and without a slash at the end (docker.io/library/name for an official image), or *.domain"
                .to_owned(),
        ),
        "dir" | "oci" | "oci-archive" | "docker-archive" => check_path(transport, scope),
        "tarball" => Err("a scope of \"tarball\" can only be \"\"".to_owned()),
        _ => Ok(()),
    }
}

/// Whether there is an image for which the scope would be looked up: it itself, one below it, or one of its domain. An
/// entry that is never looked up would leave its images to a wider one, which may accept them.
fn can_count(scope: &str) -> bool {
    let below = format!("{scope}/name");
    let of_domain = scope
        .strip_prefix('*')
        .map(|domain| format!("x{domain}/name"));
    let names = [Some(scope.to_owned()), Some(below), of_domain];
    let images = names.into_iter().flatten();
    let images = images.filter_map(|name| name.parse::<Reference>().ok());
    images
        .into_iter()
        .any(|image| of(&image).contains(&scope.to_owned()))
}

fn check_path(transport: &str, scope: &str) -> Result<(), String> {
    let clean = scope.starts_with('/')
        && scope != "/"
        && !scope.ends_with('/')
        && scope[1..]
            .split('/')
            .all(|part| !matches!(part, "" | "." | ".."));
    if clean {
        Ok(())
    } else {
        Err(format!(
            "a scope of {transport:?} is an absolute path without \".\", \"..\" and empty parts, and not \"/\""
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_go_from_the_image_to_everything() {
        let image: Reference = "r.eu.example.com:5000/a/b:v1".parse().unwrap();
        let expected = [
            "r.eu.example.com:5000/a/b:v1",
            "r.eu.example.com:5000/a/b",
            "r.eu.example.com:5000/a",
            "r.eu.example.com:5000",
            "*.eu.example.com",
            "*.example.com",
            "*.com",
            "",
        ];
        assert_eq!(of(&image), expected);
    }

    #[test]
    fn a_scope_that_can_never_count_is_refused() {
        for (transport, bad) in [
            ("docker", "docker://quay.io/a"),
            ("docker", "LOCALHOST:6101/a"),
            ("docker", "localhost:6101/a/"),
            ("docker", "localhost:6101//a"),
            ("docker", "quay.io/A"),
            ("docker", "quay.io/a:"),
            ("docker", "quay.io/a@sha256:12"),
            ("docker", "busybox"),
            ("docker", "*.Example.com"),
            ("docker", "*.example.com/a"),
            ("docker", "*.example.com:5000"),
            ("docker", "*"),
            ("docker", " quay.io"),
            ("dir", "relative"),
            ("dir", "/a/../b"),
            ("oci", "/"),
            ("tarball", "/x"),
        ] {
            assert!(check(transport, bad).is_err(), "{transport} {bad}");
        }
        let digest = format!("quay.io/a/b@{}", crate::Digest::of(b""));
        for (transport, good) in [
            ("docker", "*.example.com"),
            ("docker", "*.com"),
            ("docker", "quay.io"),
            ("docker", "localhost:6101"),
            ("docker", "[::1]:5000/a"),
            ("docker", "quay.io/a"),
            ("docker", "quay.io/a/b:v1"),
            ("docker", &digest),
            ("docker", "docker.io"),
            // As the namespace of a user of that name; the official image is in `library`.
            ("docker", "docker.io/busybox"),
            ("docker", "docker.io/library/busybox:1"),
            ("oci", "/a/b"),
            ("new", "x:y"),
        ] {
            assert!(check(transport, good).is_ok(), "{transport} {good}");
        }
    }
}
