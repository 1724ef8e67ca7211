//! A command that can be wrapped by a tool: words, environment, input.

use std::ffi::OsString;
use std::path::PathBuf;

/// What to run.
#[derive(Clone)]
pub struct Line {
    /// The program as the kernel will name it (symbolic links resolved): its
    /// memory is the one that counts.
    pub program: PathBuf,
    /// Program and arguments.
    pub words: Vec<OsString>,
    /// Variables set besides those of the harness.
    pub variables: Vec<(String, OsString)>,
    /// What its standard input is; nothing otherwise.
    pub input: Option<PathBuf>,
}

impl Line {
    /// A program with arguments.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn new<W: Into<OsString>>(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = W>,
    ) -> Result<Line, String> {
        let given = program.into();
        let found = given
            .canonicalize()
            .map_err(|e| format!("failed to find {}: {e}", given.display()))?;
        let mut words = vec![given.into_os_string()];
        words.extend(arguments.into_iter().map(Into::into));
        Ok(Line {
            program: found,
            words,
            variables: Vec::new(),
            input: None,
        })
    }

    /// With this file as standard input.
    pub fn reading(mut self, file: PathBuf) -> Line {
        self.input = Some(file);
        self
    }

    /// With this variable.
    pub fn with(mut self, name: &str, value: impl Into<OsString>) -> Line {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// The same line under another program, as `valgrind … CMD`.
    pub fn under<W: Into<OsString>>(&self, front: impl IntoIterator<Item = W>) -> Line {
        let mut line = self.clone();
        line.words = front.into_iter().map(Into::into).collect();
        line.words.extend(self.words.iter().cloned());
        line
    }
}
