//! Files made from the command line's own description, for packagers.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::roff::{self, Roff};

use crate::args::{CHECK_SECTIONS, Cli, RUN_SECTIONS, SNAPSHOT_SECTIONS};
use crate::failure::Failure;
use crate::output::pipe_may_close;

/// Prints a completion script.
///
/// # Errors
/// When stdout cannot be written.
pub fn completions(shell: Shell) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), "leakscope", &mut script);
    print(&script)
}

/// Prints the manual page: the commands in one page, as there are few.
///
/// # Errors
/// When stdout cannot be written.
pub fn man() -> Result<u8, Failure> {
    let command = visible();
    let mut page = Vec::new();
    let whole = clap_mangen::Man::new(command.clone());
    let written = (|| -> io::Result<()> {
        whole.render_title(&mut page)?;
        whole.render_name_section(&mut page)?;
        for sub in command.get_subcommands() {
            let sub = sub
                .clone()
                .bin_name(format!("leakscope {}", sub.get_name()));
            let man = clap_mangen::Man::new(sub);
            man.render_synopsis_section(&mut page)?;
            man.render_description_section(&mut page)?;
            man.render_options_section(&mut page)?;
        }
        let sections = RUN_SECTIONS.iter().map(|section| ("run", section));
        let sections = sections.chain(CHECK_SECTIONS.iter().map(|section| ("check", section)));
        let sections = sections.chain(
            SNAPSHOT_SECTIONS
                .iter()
                .map(|section| ("snapshot", section)),
        );
        for (command, (heading, lines)) in sections {
            let mut roff = Roff::new();
            let heading = format!("{heading} of {command}").to_uppercase();
            roff.control("SH", [heading.as_str()]);
            for (left, right) in *lines {
                roff.control("TP", []);
                roff.text([roff::bold(*left)]);
                roff.text([roff::roman(*right)]);
            }
            roff.to_writer(&mut page)?;
        }
        whole.render_version_section(&mut page)
    })();
    written.map_err(|e| Failure::own(format!("cannot make the manual page: {e}")))?;
    print(&page)
}

/// The command line without what `--help` hides.
fn visible() -> clap::Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let shown: Vec<clap::Command> = command
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .cloned()
        .collect();
    clap::Command::new("leakscope")
        .version(env!("CARGO_PKG_VERSION"))
        .about(command.get_about().cloned().unwrap_or_default())
        .disable_help_subcommand(true)
        .subcommands(shown)
}

fn print(bytes: &[u8]) -> Result<u8, Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    pipe_may_close(written)
        .map(|()| 0)
        .map_err(|e| Failure::own(format!("cannot write to stdout: {e}")))
}
