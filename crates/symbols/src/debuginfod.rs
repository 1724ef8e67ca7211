//! Debug files from a debuginfod server: `GET URL/buildid/HEX/debuginfo`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leakscope_model::Notice;

use crate::bytes::hex;
use crate::elf::Elf;
use crate::locate::Located;
use crate::map::Contents;
use crate::open;
use crate::options::Debuginfod;

/// Asks the servers, with the patience of [`Debuginfod`].
pub(crate) struct Client {
    options: Debuginfod,
    agent: ureq::Agent,
    /// Servers that could not be reached, with the reason.
    dead: Vec<Option<String>>,
    /// Modules asked for.
    asked: usize,
    /// Time left for all requests.
    left: Duration,
    fetched: Vec<String>,
    /// Files that came but could not be used.
    refused: Vec<String>,
}

/// How a request ended without a file.
enum Miss {
    /// The server does not have it.
    Absent,
    /// The answer cannot be used, for this reason.
    Unusable(String),
    /// The server cannot be reached, or is too slow.
    Dead(String),
}

impl Client {
    pub(crate) fn new(options: Debuginfod) -> Client {
        let agent = ureq::Agent::config_builder()
            // Not from the environment, which is the caller's to read.
            .proxy(None)
            .timeout_resolve(Some(options.connect_timeout))
            .timeout_connect(Some(options.connect_timeout))
            .max_redirects(5)
            .user_agent(concat!("leakscope/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Client {
            agent,
            dead: vec![None; options.urls.len()],
            asked: 0,
            left: options.total_timeout,
            fetched: Vec::new(),
            refused: Vec::new(),
            options,
        }
    }

    /// The debug file with this build id, from the cache or a server.
    /// `module` is its path, for notices.
    pub(crate) fn fetch(&mut self, build_id: &[u8], module: &str) -> Option<Located> {
        let digits = hex(build_id);
        let kept = self
            .options
            .cache_dir
            .as_ref()
            .map(|dir| dir.join(&digits).join("debuginfo"));
        if let Some(path) = &kept
            && let Some(elf) = read(path, build_id)
        {
            let path = path.clone();
            return Some(Located { elf, path });
        }
        if self.asked >= self.options.max_modules {
            return None;
        }
        self.asked += 1;
        for i in 0..self.options.urls.len() {
            if self.dead.get(i).is_none_or(Option::is_some) || self.left.is_zero() {
                continue;
            }
            let Some(base) = self.options.urls.get(i) else {
                continue;
            };
            let url = format!("{base}/buildid/{digits}/debuginfo");
            let begun = Instant::now();
            let answer = self.request(&url, build_id, kept.as_deref());
            self.left = self.left.saturating_sub(begun.elapsed());
            match answer {
                Ok(elf) => {
                    self.fetched.push(module.to_owned());
                    let path = kept.unwrap_or_else(|| PathBuf::from("/"));
                    return Some(Located { elf, path });
                }
                Err(Miss::Absent) => {}
                Err(Miss::Unusable(why)) => self.refused.push(format!("{module} ({why})")),
                Err(Miss::Dead(why)) => {
                    if let Some(dead) = self.dead.get_mut(i) {
                        *dead = Some(why);
                    }
                }
            }
        }
        None
    }

    fn request(&self, url: &str, build_id: &[u8], keep: Option<&Path>) -> Result<Elf, Miss> {
        let answer = self
            .agent
            .get(url)
            .config()
            .timeout_global(Some(self.left))
            .build()
            .call();
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(ureq::Error::StatusCode(404)) => return Err(Miss::Absent),
            Err(ureq::Error::StatusCode(n)) => {
                return Err(Miss::Unusable(format!("the server answered {n}")));
            }
            Err(e) => return Err(Miss::Dead(e.to_string())),
        };
        let mut body = answer
            .body_mut()
            .with_config()
            .limit(self.options.max_bytes)
            .reader();
        let lost = |e: io::Error| Miss::Dead(format!("the download broke off: {e}"));
        let unusable = |e: io::Error| Miss::Unusable(e.to_string());
        let Some(path) = keep else {
            let mut bytes = Vec::new();
            body.read_to_end(&mut bytes).map_err(lost)?;
            return check(
                Elf::parse(Contents::from_vec(bytes)).map_err(unusable)?,
                build_id,
            );
        };
        // Written beside its final name, so that nobody sees half a file.
        let dir = path.parent().unwrap_or(path);
        std::fs::create_dir_all(dir).map_err(unusable)?;
        let partial = dir.join(format!("debuginfo.{}.part", std::process::id()));
        let outcome = (|| {
            let mut file = File::create(&partial).map_err(unusable)?;
            io::copy(&mut body, &mut file).map_err(lost)?;
            let elf = read(&partial, build_id)
                .ok_or_else(|| Miss::Unusable("it has another build id".to_owned()))?;
            std::fs::rename(&partial, path).map_err(unusable)?;
            Ok(elf)
        })();
        if outcome.is_err() {
            // Nothing is lost if it stays.
            let _ = std::fs::remove_file(&partial);
        }
        outcome
    }

    /// What became of the requests.
    pub(crate) fn notices(&self) -> Vec<Notice> {
        let mut out = Vec::new();
        let mut say = |message| {
            out.push(Notice {
                code: "debuginfod",
                message,
            });
        };
        if !self.fetched.is_empty() {
            say(format!(
                "fetched debug information of {} from a debuginfod server",
                self.fetched.join(", ")
            ));
        }
        if !self.refused.is_empty() {
            say(format!(
                "a debuginfod server's answer was not used for {}",
                self.refused.join(", ")
            ));
        }
        for (url, why) in self.options.urls.iter().zip(&self.dead) {
            if let Some(why) = why {
                say(format!(
                    "the debuginfod server {url} was not reached ({why}) and not asked again"
                ));
            }
        }
        if self.left.is_zero() {
            say(
                "the time for debuginfod servers was used up; further modules were not asked for"
                    .to_owned(),
            );
        }
        out
    }
}

fn read(path: &Path, build_id: &[u8]) -> Option<Elf> {
    let file = open::regular_file(None, path).ok()?;
    let elf = Elf::parse(Contents::new(file).ok()?).ok()?;
    check(elf, build_id).ok()
}

fn check(elf: Elf, build_id: &[u8]) -> Result<Elf, Miss> {
    if elf.build_id.as_deref() == Some(build_id) {
        Ok(elf)
    } else {
        Err(Miss::Unusable("it has another build id".to_owned()))
    }
}
