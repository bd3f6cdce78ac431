//! `kbs serve --dev`: a broker for somebody who has none, and the next commands for their shell.
//!
//! All that it accepts can be made by anybody, so it says loudly what it is for.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use evidence::init_data::{Algorithm, InitData, content::AA_TOML};
use serde_json::json;

use super::init::{ADMIN_KEY, CONFIG, Init, ROOT};
use crate::config::{Config, Format};

const LISTEN: &str = "127.0.0.1:8080";
/// Below the user's directory for data.
const DIRECTORY: &str = "cloister/kbs-dev";
/// Init-data that points a guest at this broker.
const INIT_DATA: &str = "init-data.toml";
const RESOURCE: &str = "default/key/demo";

const BANNER: &str = "\
##############################################################################
#  FOR DEVELOPMENT ONLY: this broker accepts evidence that anybody can make. #
#  Whoever reaches it can be given what it keeps. Keep no real secret here.  #
##############################################################################
";

/// A development broker's directory.
pub(super) struct Dev {
    dir: PathBuf,
}

impl Dev {
    /// Makes the directory, or takes the one that was made before.
    pub(super) fn prepare(
        dir: Option<PathBuf>,
        listen: Option<SocketAddr>,
    ) -> anyhow::Result<(Self, Config)> {
        let dir = dir.map_or_else(default_directory, Ok)?;
        let dir = std::path::absolute(&dir).with_context(|| format!("find {}", dir.display()))?;
        let file = dir.join(CONFIG);
        if !file.exists() {
            let listen = listen.map_or_else(|| LISTEN.parse().context("parse"), Ok)?;
            Init::development(dir.clone(), listen).make()?;
        }
        let mut config = Config::read(&file)?;
        if let Some(listen) = listen {
            config.listen = listen;
        }
        // Somebody watches it, and nobody waits for it to end.
        config.log.format = Format::Text;
        config.drain_seconds = 0;
        Ok((Self { dir }, config))
    }

    /// What to do next, as lines for a shell.
    pub(super) fn instructions(&self, config: &Config, url: &str) -> anyhow::Result<String> {
        let kbs = env::args().next().unwrap_or_else(|| "kbs".to_owned());
        let agent = Path::new(&kbs).with_file_name("attestation-agent");
        let (kbs, agent) = (quoted(Path::new(&kbs)), quoted(&agent));
        let path = |name: &str| quoted(&self.dir.join(name));
        let mut text = format!("{BANNER}\nIn another shell:\n\n  export KBS_URL={url}\n");
        if config.tls.is_some() {
            text += &format!("  export KBS_CACERT={}\n", path(ROOT));
        }
        text += &format!("  export KBS_ADMIN_KEY={}\n", path(ADMIN_KEY));
        text += &format!("  echo 'open sesame' | {kbs} resource set {RESOURCE}\n");
        let Some(tee) = config
            .attestation
            .accept
            .iter()
            .find(|kind| !kind.is_hardware())
        else {
            return Ok(text + "\nIts configuration accepts no simulated evidence.\n");
        };
        let init_data = self.write_init_data(url)?;
        text += &format!(
            "  {kbs} policy pin --tee {tee} --init-data-digest {}\n",
            init_data.digest().hex()
        );
        text += &format!(
            "  {agent} get-resource --tee {tee} --url $KBS_URL --cert $KBS_CACERT \
             --init-data {} kbs:///{RESOURCE}\n",
            path(INIT_DATA)
        );
        text +=
            "\nThe last one is what a guest does. When it is refused, it is given a ticket:\n\n";
        text += &format!("  {kbs} explain TICKET\n");
        Ok(text)
    }

    /// Written anew each time: the port may be another one.
    fn write_init_data(&self, url: &str) -> anyhow::Result<InitData> {
        let root = self.dir.join(ROOT);
        let pem = fs::read_to_string(&root).with_context(|| format!("read {}", root.display()))?;
        let agent = json!({"token_configs": {"kbs": {"url": url, "cert": pem}}});
        let agent = toml::to_string(&agent).context("write init-data")?;
        let data = [(AA_TOML.to_owned(), agent)].into();
        let init_data = InitData::build(Algorithm::Sha384, data)?;
        let path = self.dir.join(INIT_DATA);
        fs::write(&path, init_data.text()).with_context(|| format!("write {}", path.display()))?;
        Ok(init_data)
    }
}

fn default_directory() -> anyhow::Result<PathBuf> {
    let data = env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".local/share"));
    let data = data
        .or_else(home)
        .context("there is no HOME to keep it in: give --dir")?;
    Ok(data.join(DIRECTORY))
}

/// A path as one word of a shell's line.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_whatever_is_in_it() {
        for (path, word) in [
            ("/a/b-c.d", "/a/b-c.d"),
            ("/a b", "'/a b'"),
            ("/it's", r"'/it'\''s'"),
        ] {
            assert_eq!(quoted(Path::new(path)), word);
        }
    }
}
