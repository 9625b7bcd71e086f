//! The few instructions that probes are written in. Leaves what they are good for to `programs`.
//!
//! Source: RFC 9669, sections 3 to 5.

use sys::bpf::probe::Instruction;

/// A register.
#[derive(Clone, Copy)]
pub(super) enum R {
    /// Result.
    R0 = 0,
    /// First argument.
    R1 = 1,
    /// Second argument.
    R2 = 2,
    /// Third argument.
    R3 = 3,
    /// Fourth argument.
    R4 = 4,
    /// Fifth argument.
    R5 = 5,
    /// Kept over calls; holds the context here.
    R6 = 6,
    /// Kept over calls.
    R7 = 7,
    /// End of the stack.
    R10 = 10,
}

const fn op(code: u8, to: R, from: R, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to as u8 | (from as u8) << 4,
        offset,
        immediate,
    }
}

/// `to = value`
pub(super) const fn set(to: R, value: i32) -> Instruction {
    op(0xb7, to, R::R0, 0, value)
}

/// `to = from`
pub(super) const fn copy(to: R, from: R) -> Instruction {
    op(0xbf, to, from, 0, 0)
}

/// `to += value`
pub(super) const fn add(to: R, value: i32) -> Instruction {
    op(0x07, to, R::R0, 0, value)
}

/// `to = 32 bits at [from + offset]`
pub(super) const fn read32(to: R, from: R, offset: i16) -> Instruction {
    op(0x61, to, from, offset, 0)
}

/// `to = 64 bits at [from + offset]`
pub(super) const fn read64(to: R, from: R, offset: i16) -> Instruction {
    op(0x79, to, from, offset, 0)
}

/// `64 bits at [stack end + offset] = 0`
pub(super) const fn clear(offset: i16) -> Instruction {
    op(0x7a, R::R10, R::R0, offset, 0)
}

/// Over the next `count` instructions if `register` is 0.
pub(super) const fn skip_if_zero(register: R, count: i16) -> Instruction {
    op(0x15, register, R::R0, count, 0)
}

/// A helper by number.
pub(super) const fn call(helper: i32) -> Instruction {
    op(0x85, R::R0, R::R0, 0, helper)
}

/// The end.
pub(super) const EXIT: Instruction = op(0x95, R::R0, R::R0, 0, 0);

/// `to = the map with this descriptor`; takes two places.
pub(super) const fn map(to: R, fd: i32) -> [Instruction; 2] {
    let mut first = op(0x18, to, R::R1, 0, fd);
    // the source register says what the immediate is: BPF_PSEUDO_MAP_FD
    first.registers = to as u8 | 1 << 4;
    [first, op(0, R::R0, R::R0, 0, 0)]
}

/// `to = stack end + offset`
pub(super) const fn stack(to: R, offset: i32) -> [Instruction; 2] {
    [copy(to, R::R10), add(to, offset)]
}
