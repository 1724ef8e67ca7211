//! All that is specific to x86-64 and its System V ABI: DWARF registers, the
//! shape of a row, the signal frame.

use super::cfi::{Cfa, Expression, Lookup, Rule, Rules, Tables};
use super::mapped::Mapped;
use super::row::{BpRule, Kind, OWN_SIGNAL, Row};

// DWARF register numbers (System V ABI, x86-64 supplement, figure 3.36).
const RBX: u64 = 3;
const RBP: u64 = 6;
const RSP: u64 = 7;
/// Column of the return address.
pub(crate) const RETURN_COLUMN: u64 = 16;

/// Tracked columns: rbp, return address, rbx.
pub(crate) const COLUMNS: usize = 3;

/// Index of a DWARF register among the tracked ones.
pub(crate) fn column(register: u64) -> Option<usize> {
    match register {
        RBP => Some(0),
        RETURN_COLUMN => Some(1),
        RBX => Some(2),
        _ => None,
    }
}

/// Size of a word, and of a return address.
pub(crate) const WORD: u64 = 8;
/// Bytes below sp that a leaf function may use.
pub(crate) const RED_ZONE: u64 = 128;
/// End of user addresses.
pub(crate) const USER_END: u64 = 1 << 47;
/// Below this no code is ever mapped (`vm.mmap_min_addr`).
pub(crate) const USER_BEGIN: u64 = 4096;

/// The kernel's signal frame: sp points at `struct ucontext` when the handler
/// has returned (`arch/x86/include/uapi/asm/sigcontext.h`: general registers
/// from offset 40, r8 first).
pub(crate) mod signal_frame {
    /// Offset of rbp.
    pub(crate) const BP: u64 = 120;
    /// Offset of rbx.
    pub(crate) const BX: u64 = 128;
    /// Offset of rsp.
    pub(crate) const SP: u64 = 160;
    /// Offset of rip.
    pub(crate) const IP: u64 = 168;
}

/// `mov $15, %rax; syscall`: rt_sigreturn, as every libc's restorer has it.
const RESTORER: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];

/// Whether the code at `ip` is a signal trampoline.
pub(crate) fn is_restorer(code: &Mapped, ip: u64) -> bool {
    code.holds(ip, RESTORER)
}

/// The step for `pc` (the address inside the calling instruction, or the exact
/// one after a signal).
pub(crate) fn row(tables: &Tables, pc: u64) -> Row {
    match tables.rules(pc) {
        // A return address right before which there is no code, at the start
        // of a function: no call left it there, the maker of the stack did
        // (makecontext and its kin).
        Lookup::Absent if tables.begins(pc.wrapping_add(1)) => Row::plain(Kind::End),
        Lookup::Absent => Row::plain(Kind::FramePointer),
        Lookup::Broken => Row::plain(Kind::Stop),
        Lookup::Found(rules) => compress(&rules, tables.mem, pc).unwrap_or(Row::plain(Kind::Stop)),
    }
}

fn compress(rules: &Rules, mem: Mapped, pc: u64) -> Option<Row> {
    if rules.signal {
        return Some(Row::plain(Kind::Signal).with_own(OWN_SIGNAL));
    }
    let [rbp, ra, _] = rules.registers;
    match ra {
        Rule::Undefined => return Some(Row::plain(Kind::End)),
        Rule::AtCfa(-8) => {}
        _ => return None,
    }
    let cfa = match rules.cfa {
        Cfa::Unset => return None,
        Cfa::Register(RSP, offset) => Value::sp(offset),
        Cfa::Register(RBP, offset) => Value::bp(offset),
        Cfa::Register(RBX, offset) => Value::bx(offset),
        Cfa::Register(..) => return None,
        Cfa::Expression(code) => evaluate(mem, code, pc)?,
    };
    let (rule, bp) = match rbp {
        Rule::Same => (BpRule::Same, 0),
        Rule::AtCfa(offset) => (BpRule::AtCfa, offset),
        Rule::At(code) => match evaluate(mem, code, pc) {
            Some(Value {
                base: Base::Bp,
                load: None,
                add,
            }) => (BpRule::AtBp, add),
            Some(Value {
                base: Base::Sp,
                load: None,
                add,
            }) if cfa.base == Base::Sp && cfa.load.is_none() => {
                (BpRule::AtCfa, add.wrapping_sub(cfa.add))
            }
            _ => (BpRule::Lost, 0),
        },
        Rule::Undefined | Rule::Other => (BpRule::Lost, 0),
    };
    match (cfa.base, cfa.load) {
        (Base::Sp, None) => Row::new(Kind::Sp, cfa.add, rule, bp),
        (Base::Bp, None) => Row::new(Kind::Bp, cfa.add, rule, bp),
        (Base::Bx, None) => Row::new(Kind::Bx, cfa.add, rule, bp),
        (Base::Sp, Some(at)) => Row::load(Kind::SpLoad, at, cfa.add, rule, bp),
        (Base::Bp, Some(at)) => Row::load(Kind::BpLoad, at, cfa.add, rule, bp),
        _ => None,
    }
}

/// How rbx of the caller is found at `pc`.
pub(crate) fn rbx_rule(tables: &Tables, pc: u64) -> Rule {
    match tables.rules(pc) {
        Lookup::Found(Rules {
            registers: [_, _, rbx],
            signal: false,
            ..
        }) => rbx,
        _ => Rule::Other,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    None,
    Sp,
    Bp,
    Bx,
}

/// `base + add`, or `*(base + load) + add`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    base: Base,
    load: Option<i64>,
    add: i64,
}

impl Value {
    const fn number(add: i64) -> Value {
        Value {
            base: Base::None,
            load: None,
            add,
        }
    }
    const fn sp(add: i64) -> Value {
        Value {
            base: Base::Sp,
            load: None,
            add,
        }
    }
    const fn bp(add: i64) -> Value {
        Value {
            base: Base::Bp,
            load: None,
            add,
        }
    }
    const fn bx(add: i64) -> Value {
        Value {
            base: Base::Bx,
            load: None,
            add,
        }
    }

    fn as_number(self) -> Option<i64> {
        (self.base == Base::None).then_some(self.add)
    }
}

/// Depth of the expression stack.
const EXPRESSION_DEPTH: usize = 8;

/// Reduces an expression to one base register and numbers: with the pc known,
/// that is what compilers and linkers emit (realigned frames, PLT stubs).
fn evaluate(mem: Mapped, code: Expression, pc: u64) -> Option<Value> {
    let mut code = mem.cursor(code.at, code.end);
    let mut stack = Stack {
        values: [Value::number(0); EXPRESSION_DEPTH],
        len: 0,
    };
    // There are no jumps: each turn consumes at least one byte.
    while !code.is_empty() {
        let op = code.u8()?;
        let value = match op {
            // deref
            0x06 => {
                let value = stack.pop()?;
                if value.load.is_some() || value.base == Base::None {
                    return None;
                }
                Value {
                    base: value.base,
                    load: Some(value.add),
                    add: 0,
                }
            }
            // const1u to consts
            0x08 => Value::number(i64::from(code.u8()?)),
            0x09 => Value::number(i64::from(code.i8()?)),
            0x0a => Value::number(i64::from(code.u16()?)),
            0x0b => Value::number(i64::from(code.i16()?)),
            0x0c => Value::number(i64::from(code.u32()?)),
            0x0d => Value::number(i64::from(code.i32()?)),
            0x10 => Value::number(code.uleb()? as i64),
            0x11 => Value::number(code.sleb()?),
            // dup
            0x12 => {
                let value = stack.pop()?;
                stack.push(value)?;
                value
            }
            // plus_uconst
            0x23 => {
                let value = stack.pop()?;
                let add = value.add.wrapping_add(code.uleb()? as i64);
                Value { add, ..value }
            }
            // and, minus, mul, or, plus, shl, shr, eq, ge, gt, le, lt, ne
            0x1a | 0x1c | 0x1e | 0x21 | 0x22 | 0x24 | 0x25 | 0x29..=0x2e => {
                let right = stack.pop()?;
                let left = stack.pop()?;
                binary(op, left, right)?
            }
            // lit0 to lit31
            0x30..=0x4f => Value::number(i64::from(op.wrapping_sub(0x30))),
            // breg0 to breg31
            0x70..=0x8f => {
                let offset = code.sleb()?;
                match u64::from(op.wrapping_sub(0x70)) {
                    RBX => Value::bx(offset),
                    RBP => Value::bp(offset),
                    RSP => Value::sp(offset),
                    RETURN_COLUMN => Value::number((pc as i64).wrapping_add(offset)),
                    _ => return None,
                }
            }
            0x96 => continue,
            _ => return None,
        };
        stack.push(value)?;
    }
    stack.pop()
}

fn binary(op: u8, left: Value, right: Value) -> Option<Value> {
    match op {
        0x22 if right.base == Base::None => {
            let add = left.add.wrapping_add(right.add);
            return Some(Value { add, ..left });
        }
        0x22 if left.base == Base::None => {
            let add = left.add.wrapping_add(right.add);
            return Some(Value { add, ..right });
        }
        0x1c if right.base == Base::None => {
            let add = left.add.wrapping_sub(right.add);
            return Some(Value { add, ..left });
        }
        _ => {}
    }
    let (left, right) = (left.as_number()?, right.as_number()?);
    Some(Value::number(match op {
        0x1a => left & right,
        0x1e => left.wrapping_mul(right),
        0x21 => left | right,
        0x24 if (0..64).contains(&right) => left.wrapping_shl(right as u32),
        0x25 if (0..64).contains(&right) => (left as u64).wrapping_shr(right as u32) as i64,
        0x29 => i64::from(left == right),
        0x2a => i64::from(left >= right),
        0x2b => i64::from(left > right),
        0x2c => i64::from(left <= right),
        0x2d => i64::from(left < right),
        0x2e => i64::from(left != right),
        _ => return None,
    }))
}

struct Stack {
    values: [Value; EXPRESSION_DEPTH],
    len: usize,
}

impl Stack {
    fn push(&mut self, value: Value) -> Option<()> {
        *self.values.get_mut(self.len)? = value;
        self.len = self.len.wrapping_add(1);
        Some(())
    }

    fn pop(&mut self) -> Option<Value> {
        self.len = self.len.checked_sub(1)?;
        self.values.get(self.len).copied()
    }
}
