//! `/proc/PID/task/TID/syscall`: where a blocked thread waits.

use crate::error::ProcError;
use crate::number::{decimal32, hex, words};

/// What the kernel tells about a thread without stopping it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Syscall {
    /// It was on a processor: nothing is known.
    Running,
    /// It is blocked, but not in a system call (a page fault, say).
    Blocked {
        /// Stack pointer.
        sp: u64,
        /// Instruction pointer.
        pc: u64,
    },
    /// It is inside a system call.
    Inside {
        /// Number of the call.
        number: u32,
        /// Argument registers.
        arguments: [u64; 6],
        /// Stack pointer.
        sp: u64,
        /// Instruction pointer.
        pc: u64,
    },
}

/// Understands the file's single line.
///
/// # Errors
/// Malformed: the missing component and the line.
pub fn parse(text: &[u8]) -> Result<Syscall, ProcError> {
    // running
    // -1 0x7ffe92cd3b88 0x55e6cf1a3f41
    // 0 0x0 0x55e6cf7b 0x400 0x0 0x0 0x0 0x7ffe92cd3b88 0x7f5a0df3a81d
    let line = text.strip_suffix(b"\n").unwrap_or(text);
    let missing = |component| move || ProcError::malformed(component, line);
    let mut parts = words(line);
    let number = match parts.next() {
        Some(b"running") => return Ok(Syscall::Running),
        Some(b"-1") => None,
        Some(number) => Some(decimal32(number).ok_or_else(missing("call number"))?),
        None => return Err(missing("call number")()),
    };
    let mut value = |component| {
        let digits = parts.next().and_then(|word| word.strip_prefix(b"0x"));
        digits.and_then(hex).ok_or_else(missing(component))
    };
    let Some(number) = number else {
        let sp = value("stack pointer")?;
        let pc = value("instruction pointer")?;
        return Ok(Syscall::Blocked { sp, pc });
    };
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = value("argument")?;
    }
    Ok(Syscall::Inside {
        number,
        arguments,
        sp: value("stack pointer")?,
        pc: value("instruction pointer")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms() {
        assert_eq!(parse(b"running\n").unwrap(), Syscall::Running);
        assert_eq!(
            parse(b"-1 0x7ff0 0x55\n").unwrap(),
            Syscall::Blocked {
                sp: 0x7ff0,
                pc: 0x55
            }
        );
        assert_eq!(
            parse(b"58 0x1 0x2 0x3 0x4 0x5 0x6 0x7ff0 0x55\n").unwrap(),
            Syscall::Inside {
                number: 58,
                arguments: [1, 2, 3, 4, 5, 6],
                sp: 0x7ff0,
                pc: 0x55
            }
        );
    }

    #[test]
    fn broken_lines() {
        for (text, component) in [
            ("", "call number"),
            ("x", "call number"),
            ("-1 0x7ff0", "instruction pointer"),
            ("-1 7ff0 0x1", "stack pointer"),
            ("0 0x1 0x2", "argument"),
            ("0 0x1 0x2 0x3 0x4 0x5 0x6", "stack pointer"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert_eq!(error, format!("find the {component} in \"{text}\""));
        }
    }
}
