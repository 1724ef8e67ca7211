//! `leakscope snapshot`: a process becomes a core file.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use flate2::write::GzEncoder;
use leakscope_model::quantity;
use leakscope_session::{CoreTarget, Mode, Saved, SnapshotError};

use crate::args::{self, WayToSave};
use crate::commands::check::{Target, target_of};
use crate::failure::Failure;
use crate::output::{self, Kind, cannot_write};
use crate::progress::Progress;
use crate::terminal::Terminal;

/// Saves the process and says so.
///
/// # Errors
/// When it cannot be examined, or the file not be written.
pub fn snapshot(args: args::Snapshot) -> Result<u8, Failure> {
    let own = |e: leakscope_session::CheckError| Failure::own(e.to_string());
    let pid = match (&args.pid, &args.name) {
        (Some(target), _) => match target_of(target)? {
            Target::Process(pid) => pid,
            Target::Core => {
                let text = target.to_string_lossy();
                return Err(Failure::own(format!("'{text}' is a file, not a process")));
            }
        },
        (None, Some(name)) => {
            leakscope_session::find_process(name.as_encoded_bytes()).map_err(own)?
        }
        (None, None) => return Err(Failure::own("name a process: its PID, or --name")),
    };
    for other in ["zst", "xz", "bz2", "lz4"] {
        if is_named(&args.output, other) {
            return Err(Failure::own(format!(
                "a snapshot can be packed as .gz only, not as .{other}: name it so, or pack it \
                 afterwards"
            )));
        }
    }
    let mode = match args.mode {
        WayToSave::Auto => Mode::Auto,
        WayToSave::Stop => Mode::Stop,
        WayToSave::Fork => Mode::Fork,
    };
    let mut progress = Progress::new(Terminal::of_stderr(), args.quiet);
    let mut save = |to: &mut CoreTarget<'_>| {
        let saved = leakscope_session::snapshot(pid, mode, to, &mut |what| progress.show(what));
        progress.clear();
        saved.map_err(|e| match e {
            SnapshotError::Process(e) => own(e),
            SnapshotError::Write(e) => cannot_write(&args.output, &e),
        })
    };
    let to_stdout = args.output.as_os_str() == "-";
    let saved = if to_stdout {
        stream(&mut io::stdout().lock(), &mut save)?
    } else {
        to_file(&args.output, &mut save)?
    };
    if !args.quiet {
        let text = said(pid, &args.output, &saved);
        let written = if to_stdout {
            write!(io::stderr(), "{text}")
        } else {
            write!(io::stdout(), "{text}")
        };
        output::pipe_may_close(written)
            .map_err(|e| Failure::own(format!("cannot write to stdout: {e}")))?;
    }
    Ok(0)
}

type Save<'a> = dyn FnMut(&mut CoreTarget<'_>) -> Result<Saved, Failure> + 'a;

fn stream(to: &mut dyn Write, save: &mut Save<'_>) -> Result<Saved, Failure> {
    let mut buffered = BufWriter::new(to);
    save(&mut CoreTarget::Stream(&mut buffered))
}

/// A file appears whole or not at all, and is its owner's only.
fn to_file(path: &Path, save: &mut Save<'_>) -> Result<Saved, Failure> {
    let failed = |e: io::Error| cannot_write(path, &e);
    match output::kind(path) {
        Kind::Directory => Err(failed(io::Error::from(io::ErrorKind::IsADirectory))),
        Kind::Special => {
            let mut file = OpenOptions::new().write(true).open(path).map_err(failed)?;
            stream(&mut file, save)
        }
        Kind::Regular => {
            let mut file = output::temporary(path, 0o600).map_err(failed)?;
            let saved = if is_named(path, "gz") {
                let fast = flate2::Compression::fast();
                let mut packed = GzEncoder::new(BufWriter::new(file.as_file_mut()), fast);
                let saved = save(&mut CoreTarget::Stream(&mut packed))?;
                let written = packed.finish().and_then(|mut file| file.flush());
                written.map_err(failed)?;
                saved
            } else {
                save(&mut CoreTarget::File(file.as_file_mut()))?
            };
            output::keep(file, path).map_err(failed)?;
            Ok(saved)
        }
    }
}

fn is_named(path: &Path, suffix: &str) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case(suffix))
}

/// What was done, and what to do next.
fn said(pid: u32, path: &Path, saved: &Saved) -> String {
    let path = leakscope_report::escape(&path.to_string_lossy()).into_owned();
    let pause = leakscope_report::seconds(saved.pause.as_secs_f64());
    let mut text = format!(
        "leakscope: Saved process {pid} to {path}: {}, {} of it without holes; the process was \
         stopped for {pause}.\n",
        quantity::bytes(saved.written.length),
        quantity::bytes(saved.written.filled),
    );
    if let Some(why) = &saved.not_copied {
        text += &format!("It was stopped while it was read, not copied: {why}.\n");
    }
    if saved.skipped > 0 {
        let threads = quantity::counted(saved.skipped as u64, "thread");
        text += &format!("{threads} could not be stopped, and are not in the file.\n");
    }
    if saved.written.unreadable > 0 {
        let bytes = quantity::bytes(saved.written.unreadable);
        text += &format!("{bytes} could not be read, and are zeros in the file.\n");
    }
    if path != "-" {
        text += &format!("Next: leakscope check {path}\n");
    }
    text
}
