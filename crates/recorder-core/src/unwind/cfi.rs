//! `.eh_frame` call-frame information: finds the rules for one pc.
//!
//! ```text
//! .eh_frame_hdr  version 1, encodings of (eh_frame, count, table), eh_frame, count,
//!                table of (first pc, address of FDE), sorted
//! record         length (4, or 0xffffffff and 8), id (4), body
//!   CIE          id 0: version, augmentation, alignments, return column, program
//!   FDE          id = distance back to its CIE: first pc, pc count, program
//! ```
//! Linux Standard Base 5.0, "Exception Frames"; DWARF 5, section 6.4. All of it
//! is hostile: each read is checked, each loop consumes input or counts.

use super::mapped::{Cursor, Mapped};
use super::x86_64::{COLUMNS, column};

/// Longest record that is read, in bytes.
const MAX_RECORD: u64 = 1 << 20;
/// Most records read where there is no sorted table.
const MAX_SCAN: u32 = 1 << 17;
/// Depth of `DW_CFA_remember_state`.
const REMEMBERED: usize = 6;

/// Bytes of a DWARF expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expression {
    pub(crate) at: u64,
    pub(crate) end: u64,
}

/// Where the canonical frame address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cfa {
    /// Never said.
    Unset,
    /// DWARF register and offset.
    Register(u64, i64),
    Expression(Expression),
}

/// Where the caller's value of a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Unchanged (also: never said).
    Same,
    Undefined,
    /// In memory at CFA + offset.
    AtCfa(i64),
    /// In memory where the expression says.
    At(Expression),
    /// Anything else.
    Other,
}

/// The rules that hold at one pc.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) cfa: Cfa,
    /// One rule per tracked column (`x86_64::column`).
    pub(crate) registers: [Rule; COLUMNS],
    /// The function is a signal trampoline.
    pub(crate) signal: bool,
}

/// Outcome of a search.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lookup {
    /// No record covers the pc.
    Absent,
    /// A record does, but cannot be understood.
    Broken,
    Found(Rules),
}

/// The unwind tables of one module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables {
    pub(crate) mem: Mapped,
    /// Address and length of `.eh_frame_hdr`.
    pub(crate) hdr: u64,
    pub(crate) hdr_len: u64,
}

/// Common information entry.
struct Cie {
    code_align: u64,
    data_align: i64,
    encoding: u8,
    augmented: bool,
    signal: bool,
    program: Cursor,
}

/// Frame description entry.
struct Fde {
    cie: Cie,
    begin: u64,
    count: u64,
    program: Cursor,
}

impl Fde {
    fn covers(&self, pc: u64) -> bool {
        pc >= self.begin && pc.wrapping_sub(self.begin) < self.count
    }
}

impl Tables {
    /// The rules at `pc`.
    pub(crate) fn rules(&self, pc: u64) -> Lookup {
        let fde = match self.find(pc) {
            Some(Some(fde)) => fde,
            Some(None) => return Lookup::Absent,
            None => return Lookup::Broken,
        };
        match fde.run(pc) {
            Some(rules) => Lookup::Found(rules),
            None => Lookup::Broken,
        }
    }

    /// Whether a function begins at `pc`.
    pub(crate) fn begins(&self, pc: u64) -> bool {
        matches!(self.find(pc), Some(Some(fde)) if fde.begin == pc)
    }

    /// `None` if the tables are damaged, `Some(None)` if none covers `pc`.
    fn find(&self, pc: u64) -> Option<Option<Fde>> {
        let end = self.hdr.checked_add(self.hdr_len)?;
        let mut cursor = self.mem.cursor(self.hdr, end);
        if cursor.u8()? != 1 {
            return None;
        }
        let (frame_enc, count_enc, table_enc) = (cursor.u8()?, cursor.u8()?, cursor.u8()?);
        let eh_frame = pointer(&mut cursor, frame_enc, self.hdr)?;
        let count = match pointer(&mut cursor, count_enc, self.hdr) {
            Some(count) if table_enc == DATAREL_SDATA4 => count,
            _ => return self.scan(eh_frame, pc),
        };
        let table = cursor.at();
        let count = count.min(cursor.end().saturating_sub(table) >> 3);
        // Entries of (first pc, FDE), both as i32 from the header: the last
        // one that begins at or below pc.
        let (mut low, mut high) = (0u64, count);
        while low < high {
            let middle = low.wrapping_add(high.wrapping_sub(low) >> 1);
            if self.entry(table, middle)?.0 <= pc {
                low = middle.wrapping_add(1);
            } else {
                high = middle;
            }
        }
        let Some(index) = low.checked_sub(1) else {
            return Some(None);
        };
        let fde = self.fde(self.entry(table, index)?.1)?;
        Some(fde.covers(pc).then_some(fde))
    }

    /// First pc and FDE address of one entry of the sorted table.
    fn entry(&self, table: u64, index: u64) -> Option<(u64, u64)> {
        let at = table.wrapping_add(index << 3);
        let mut cursor = self.mem.cursor(at, self.mem.end());
        let begin = cursor.i32()?;
        let fde = cursor.i32()?;
        Some((
            self.hdr.wrapping_add_signed(i64::from(begin)),
            self.hdr.wrapping_add_signed(i64::from(fde)),
        ))
    }

    /// Reads one record after the other: for linkers that left out the table.
    fn scan(&self, eh_frame: u64, pc: u64) -> Option<Option<Fde>> {
        let mut at = eh_frame;
        for _ in 0..MAX_SCAN {
            let mut cursor = self.mem.cursor(at, self.mem.end());
            let (length, _) = match record_length(&mut cursor) {
                Some((0, _)) | None => return Some(None),
                Some(length) => length,
            };
            let next = cursor.at().checked_add(length)?;
            if cursor.u32()? != 0
                && let Some(fde) = self.fde(at)
                && fde.covers(pc)
            {
                return Some(Some(fde));
            }
            at = next;
        }
        Some(None)
    }

    /// The body of the record at `at`, with its id and where the id stands.
    fn record(&self, at: u64) -> Option<(Cursor, u64, u64)> {
        let mut cursor = self.mem.cursor(at, self.mem.end());
        let (length, _wide) = record_length(&mut cursor)?;
        if length > MAX_RECORD {
            return None;
        }
        let mut body = cursor.split(length)?;
        let id_at = body.at();
        // In .eh_frame the id is 4 bytes even after a wide length.
        let id = u64::from(body.u32()?);
        Some((body, id, id_at))
    }

    fn fde(&self, at: u64) -> Option<Fde> {
        let (mut body, id, id_at) = self.record(at)?;
        if id == 0 {
            return None;
        }
        let cie = self.cie(id_at.checked_sub(id)?)?;
        let begin = pointer(&mut body, cie.encoding, self.hdr)?;
        // The count has the format of the pointer, but is never relative.
        let count = pointer(&mut body, cie.encoding & FORMAT, 0)?;
        if cie.augmented {
            let length = body.uleb()?;
            body.skip(length)?;
        }
        Some(Fde {
            cie,
            begin,
            count,
            program: body,
        })
    }

    fn cie(&self, at: u64) -> Option<Cie> {
        let (mut body, id, _) = self.record(at)?;
        let version = body.u8()?;
        if id != 0 || !matches!(version, 1 | 3 | 4) {
            return None;
        }
        let mut letters = body;
        while body.u8()? != 0 {}
        if version == 4 {
            // Address size and segment selector size.
            if body.u8()? != 8 || body.u8()? != 0 {
                return None;
            }
        }
        let code_align = body.uleb()?;
        let data_align = body.sleb()?;
        let return_column = match version {
            1 => u64::from(body.u8()?),
            _ => body.uleb()?,
        };
        if return_column != super::x86_64::RETURN_COLUMN {
            return None;
        }
        let mut cie = Cie {
            code_align,
            data_align,
            encoding: 0,
            augmented: false,
            signal: false,
            program: body,
        };
        let mut first = true;
        loop {
            match letters.u8()? {
                0 => break,
                b'z' if first => {
                    cie.augmented = true;
                    let length = body.uleb()?;
                    cie.program = body;
                    cie.program.skip(length)?;
                }
                b'R' if cie.augmented => cie.encoding = body.u8()?,
                b'L' if cie.augmented => {
                    body.u8()?;
                }
                b'P' if cie.augmented => {
                    let encoding = body.u8()?;
                    pointer(&mut body, encoding & !INDIRECT, self.hdr)?;
                }
                b'S' => cie.signal = true,
                // Without 'z' an unknown letter hides where the program begins;
                // with it, the letters that follow cannot be trusted.
                _ if cie.augmented => break,
                _ => return None,
            }
            first = false;
        }
        Some(cie)
    }
}

/// Length of a record's body and whether it is of the wide form.
fn record_length(cursor: &mut Cursor) -> Option<(u64, bool)> {
    match cursor.u32()? {
        u32::MAX => Some((cursor.u64()?, true)),
        length => Some((u64::from(length), false)),
    }
}

/// Format bits of a pointer encoding (`DW_EH_PE_…`).
const FORMAT: u8 = 0x0f;
const INDIRECT: u8 = 0x80;
const OMIT: u8 = 0xff;
const DATAREL_SDATA4: u8 = 0x3b;

/// An encoded pointer; `data` is what data-relative ones count from.
fn pointer(cursor: &mut Cursor, encoding: u8, data: u64) -> Option<u64> {
    if encoding == OMIT || encoding & INDIRECT != 0 {
        return None;
    }
    let base = match encoding & 0x70 {
        0x00 => 0,
        0x10 => cursor.at(),
        0x30 => data,
        _ => return None,
    };
    let value = match encoding & FORMAT {
        0x00 | 0x04 | 0x0c => cursor.u64()?,
        0x01 => cursor.uleb()?,
        0x02 => u64::from(cursor.u16()?),
        0x03 => u64::from(cursor.u32()?),
        0x09 => cursor.sleb()? as u64,
        0x0a => i64::from(cursor.i16()?) as u64,
        0x0b => i64::from(cursor.i32()?) as u64,
        _ => return None,
    };
    Some(base.wrapping_add(value))
}

/// What `DW_CFA_remember_state` keeps.
#[derive(Clone, Copy)]
struct State {
    cfa: Cfa,
    registers: [Rule; COLUMNS],
}

impl Fde {
    /// Runs the programs of CIE and FDE up to `pc`.
    fn run(&self, pc: u64) -> Option<Rules> {
        let blank = State {
            cfa: Cfa::Unset,
            registers: [Rule::Same; COLUMNS],
        };
        let mut machine = Machine {
            cie: &self.cie,
            pc,
            location: self.begin,
            state: blank,
            initial: blank,
            kept: [blank; REMEMBERED],
            depth: 0,
        };
        machine.run(self.cie.program)?;
        machine.initial = machine.state;
        machine.location = self.begin;
        machine.run(self.program)?;
        Some(Rules {
            cfa: machine.state.cfa,
            registers: machine.state.registers,
            signal: self.cie.signal,
        })
    }
}

struct Machine<'a> {
    cie: &'a Cie,
    pc: u64,
    location: u64,
    state: State,
    initial: State,
    kept: [State; REMEMBERED],
    depth: usize,
}

impl Machine<'_> {
    /// `None` if the program cannot be understood.
    fn run(&mut self, mut code: Cursor) -> Option<()> {
        // Each turn consumes at least one byte.
        while !code.is_empty() {
            let byte = code.u8()?;
            let low = u64::from(byte & 0x3f);
            let reached = match byte >> 6 {
                1 => self.advance(low),
                2 => {
                    let offset = self.factored(code.uleb()?);
                    self.set(low, Rule::AtCfa(offset))
                }
                3 => self.restore(low),
                _ => self.extended(byte, &mut code)?,
            };
            if reached {
                break;
            }
        }
        Some(())
    }

    /// Operations with their own byte. True once the pc is passed.
    fn extended(&mut self, byte: u8, code: &mut Cursor) -> Option<bool> {
        match byte {
            0x00 => {}
            // set_loc
            0x01 => {
                let to = pointer(code, self.cie.encoding, 0)?;
                if to > self.pc {
                    return Some(true);
                }
                self.location = to;
            }
            0x02 => {
                let delta = u64::from(code.u8()?);
                return Some(self.advance(delta));
            }
            0x03 => {
                let delta = u64::from(code.u16()?);
                return Some(self.advance(delta));
            }
            0x04 => {
                let delta = u64::from(code.u32()?);
                return Some(self.advance(delta));
            }
            // offset_extended, restore_extended, undefined, same_value, register
            0x05 => {
                let register = code.uleb()?;
                let offset = self.factored(code.uleb()?);
                self.set(register, Rule::AtCfa(offset));
            }
            0x06 => {
                let register = code.uleb()?;
                self.restore(register);
            }
            0x07 => {
                let register = code.uleb()?;
                self.set(register, Rule::Undefined);
            }
            0x08 => {
                let register = code.uleb()?;
                self.set(register, Rule::Same);
            }
            0x09 => {
                let register = code.uleb()?;
                code.uleb()?;
                self.set(register, Rule::Other);
            }
            // remember_state, restore_state
            0x0a => {
                *self.kept.get_mut(self.depth)? = self.state;
                self.depth = self.depth.wrapping_add(1);
            }
            0x0b => {
                self.depth = self.depth.checked_sub(1)?;
                self.state = *self.kept.get(self.depth)?;
            }
            // def_cfa, def_cfa_register, def_cfa_offset
            0x0c => self.state.cfa = Cfa::Register(code.uleb()?, code.uleb()? as i64),
            0x0d => {
                let Cfa::Register(_, offset) = self.state.cfa else {
                    return None;
                };
                self.state.cfa = Cfa::Register(code.uleb()?, offset);
            }
            0x0e => {
                let offset = code.uleb()? as i64;
                self.cfa_offset(offset)?;
            }
            // def_cfa_expression, expression
            0x0f => self.state.cfa = Cfa::Expression(expression(code)?),
            0x10 => {
                let register = code.uleb()?;
                let rule = Rule::At(expression(code)?);
                self.set(register, rule);
            }
            // offset_extended_sf, def_cfa_sf, def_cfa_offset_sf
            0x11 => {
                let register = code.uleb()?;
                let offset = code.sleb()?.wrapping_mul(self.cie.data_align);
                self.set(register, Rule::AtCfa(offset));
            }
            0x12 => {
                let register = code.uleb()?;
                let offset = code.sleb()?.wrapping_mul(self.cie.data_align);
                self.state.cfa = Cfa::Register(register, offset);
            }
            0x13 => {
                let offset = code.sleb()?.wrapping_mul(self.cie.data_align);
                self.cfa_offset(offset)?;
            }
            // val_offset, val_offset_sf, val_expression
            0x14 | 0x15 => {
                let register = code.uleb()?;
                code.uleb()?;
                self.set(register, Rule::Other);
            }
            0x16 => {
                let register = code.uleb()?;
                expression(code)?;
                self.set(register, Rule::Other);
            }
            // GNU_args_size, GNU_negative_offset_extended
            0x2e => {
                code.uleb()?;
            }
            0x2f => {
                let register = code.uleb()?;
                let offset = self.factored(code.uleb()?).wrapping_neg();
                self.set(register, Rule::AtCfa(offset));
            }
            _ => return None,
        }
        Some(false)
    }

    fn factored(&self, offset: u64) -> i64 {
        (offset as i64).wrapping_mul(self.cie.data_align)
    }

    fn advance(&mut self, delta: u64) -> bool {
        let to = self
            .location
            .saturating_add(delta.saturating_mul(self.cie.code_align));
        if to > self.pc {
            return true;
        }
        self.location = to;
        false
    }

    fn cfa_offset(&mut self, offset: i64) -> Option<()> {
        let Cfa::Register(register, _) = self.state.cfa else {
            return None;
        };
        self.state.cfa = Cfa::Register(register, offset);
        Some(())
    }

    /// Always false, so that it can end a `match` arm.
    fn set(&mut self, register: u64, rule: Rule) -> bool {
        if let Some(slot) = column(register).and_then(|at| self.state.registers.get_mut(at)) {
            *slot = rule;
        }
        false
    }

    fn restore(&mut self, register: u64) -> bool {
        match column(register).and_then(|at| self.initial.registers.get(at)) {
            Some(&rule) => self.set(register, rule),
            None => false,
        }
    }
}

fn expression(code: &mut Cursor) -> Option<Expression> {
    let length = code.uleb()?;
    let bytes = code.split(length)?;
    Some(Expression {
        at: bytes.at(),
        end: bytes.end(),
    })
}
