//! The system call with which a small program is given to the kernel (bpf(2)), and what it gives back: a map that both see, a program that
//! is run over cgroups (`Documentation/bpf/bpf_iterators.rst`).
//!
//! Raw, since every library for it wants either a C library or a compiler for such programs; what is needed here are four calls.

use std::ffi::{c_int, c_long, c_uint, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

#[expect(unsafe_code, reason = "bpf(2), for which no safe wrapper exists")]
unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

#[cfg(target_arch = "x86_64")]
const SYS_BPF: Option<c_long> = Some(321);
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
const SYS_BPF: Option<c_long> = Some(280);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const SYS_BPF: Option<c_long> = None;

/// The commands of `enum bpf_cmd` that are used here.
#[derive(Clone, Copy)]
enum Command {
    MapCreate = 0,
    ProgLoad = 5,
    LinkCreate = 28,
    IterCreate = 33,
}

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_MMAPABLE: u32 = 1 << 10;
const PROG_TYPE_TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;
/// Each cgroup before those in it.
const DESCENDANTS_PRE: u32 = 2;
/// The kernel lets only programs under the GPL read its memory. The instructions that are loaded are offered under either of these two, beside
/// the project's own licence.
const LICENCE: &[u8] = b"Dual MIT/GPL\0";

/// `union bpf_attr`, word by word.
struct Attr([u64; 16]);

impl Attr {
    fn new() -> Attr {
        Attr([0; 16])
    }

    /// A 32-bit field, `at` bytes from the beginning.
    fn word(mut self, at: usize, value: u32) -> Attr {
        let shift = if at.is_multiple_of(8) == cfg!(target_endian = "little") { 0 } else { 32 };
        self.0[at / 8] |= u64::from(value) << shift;
        self
    }

    fn pointer<T>(mut self, at: usize, to: *const T) -> Attr {
        self.0[at / 8] = to.addr() as u64;
        self
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Attr {
        self.word(at, u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX))
    }
}

/// One call that answers with a descriptor. What the attributes point to must outlive it.
fn bpf(command: Command, attr: &Attr) -> io::Result<OwnedFd> {
    let number = SYS_BPF.ok_or(io::ErrorKind::Unsupported)?;
    let size = c_uint::try_from(size_of_val(&attr.0)).unwrap_or(0);
    #[expect(unsafe_code, reason = "bpf(2): its attributes are a live block of the size that is told, and whatever they point to is alive")]
    // SAFETY: as above; the kernel only reads what these commands point to.
    let result = unsafe { syscall(number, command as c_int, attr.0.as_ptr(), size) };
    let fd = c_int::try_from(result).ok().filter(|fd| 0 <= *fd).ok_or_else(io::Error::last_os_error)?;
    #[expect(unsafe_code, reason = "the descriptor is new, and nobody else knows of it")]
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Memory that the kernel's programs and this process see: an array map with one value, mapped.
#[derive(Debug)]
pub struct Shared {
    map: OwnedFd,
    at: NonNull<AtomicU64>,
    words: usize,
}

#[expect(unsafe_code, reason = "the mapping belongs to this value alone, and is read and written as atomics")]
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    /// So many words of 64 bits, all 0.
    ///
    /// # Errors
    /// As from bpf(2) (`EPERM` without `CAP_BPF`) and mmap(2).
    pub fn new(words: usize) -> io::Result<Shared> {
        let bytes = u32::try_from(8 * words).map_err(|_| io::ErrorKind::InvalidInput)?;
        let attr = Attr::new().word(0, MAP_TYPE_ARRAY).word(4, 4).word(8, bytes).word(12, 1).word(16, MAP_MMAPABLE);
        let map = bpf(Command::MapCreate, &attr)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        #[expect(unsafe_code, reason = "a new mapping, at an address that the kernel chooses")]
        // SAFETY: nothing is mapped over; the length is the map's.
        let at = unsafe { mmap(std::ptr::null_mut(), 8 * words, protection, flags, &map, 0) }?;
        let at = NonNull::new(at.cast::<AtomicU64>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Shared { map, at, words })
    }

    /// The words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        #[expect(unsafe_code, reason = "the mapping is as long as this says, aligned to a page, and lives as long as this value")]
        // SAFETY: as above; the kernel's programs change it as they run, which is why it is read as atomics.
        unsafe {
            std::slice::from_raw_parts(self.at.as_ptr(), self.words)
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "the mapping that was made in `new`, and that nobody uses any more")]
        // SAFETY: as above.
        let done = unsafe { munmap(self.at.as_ptr().cast::<c_void>(), 8 * self.words) };
        debug_assert!(done.is_ok());
    }
}

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct R(pub u8);

/// One instruction (Documentation/bpf/standardization/instruction-set.rst), or two words of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn(u64);

impl Insn {
    fn new(code: u8, to: R, from: R, offset: i16, value: i32) -> Insn {
        let mut bytes = [0; 8];
        bytes[0] = code;
        bytes[1] = if cfg!(target_endian = "little") { from.0 << 4 | to.0 } else { to.0 << 4 | from.0 };
        bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
        bytes[4..8].copy_from_slice(&value.to_ne_bytes());
        Insn(u64::from_ne_bytes(bytes))
    }

    /// `to = *(u64 *)(from + offset)`.
    #[must_use]
    pub fn load(to: R, from: R, offset: i16) -> Insn {
        Insn::new(0x79, to, from, offset, 0)
    }

    /// `*(u64 *)(to + offset) = from`.
    #[must_use]
    pub fn store(to: R, offset: i16, from: R) -> Insn {
        Insn::new(0x7b, to, from, offset, 0)
    }

    /// `*(u64 *)(to + offset) = value`.
    #[must_use]
    pub fn store_value(to: R, offset: i16, value: i32) -> Insn {
        Insn::new(0x7a, to, R(0), offset, value)
    }

    /// `to = from`.
    #[must_use]
    pub fn copy(to: R, from: R) -> Insn {
        Insn::new(0xbf, to, from, 0, 0)
    }

    /// `to = value`.
    #[must_use]
    pub fn set(to: R, value: i32) -> Insn {
        Insn::new(0xb7, to, R(0), 0, value)
    }

    /// `to += from`.
    #[must_use]
    pub fn add(to: R, from: R) -> Insn {
        Insn::new(0x0f, to, from, 0, 0)
    }

    /// `to += value`.
    #[must_use]
    pub fn add_value(to: R, value: i32) -> Insn {
        Insn::new(0x07, to, R(0), 0, value)
    }

    /// `to <<= bits`.
    #[must_use]
    pub fn shift_left(to: R, bits: i32) -> Insn {
        Insn::new(0x67, to, R(0), 0, bits)
    }

    /// Passes over so many instructions if `this == value`.
    #[must_use]
    pub fn skip_if(this: R, value: i32, over: i16) -> Insn {
        Insn::new(0x15, this, R(0), over, value)
    }

    /// Passes over so many instructions unless `this == value`.
    #[must_use]
    pub fn skip_unless(this: R, value: i32, over: i16) -> Insn {
        Insn::new(0x55, this, R(0), over, value)
    }

    /// Passes over so many instructions if `this >= value`, both without a sign.
    #[must_use]
    pub fn skip_from(this: R, value: i32, over: i16) -> Insn {
        Insn::new(0x35, this, R(0), over, value)
    }

    /// Calls a helper (`enum bpf_func_id`): its arguments are in 1 to 5, its answer is in 0.
    #[must_use]
    pub fn call(helper: i32) -> Insn {
        Insn::new(0x85, R(0), R(0), 0, helper)
    }

    /// The end; the answer is in 0.
    #[must_use]
    pub fn end() -> Insn {
        Insn::new(0x95, R(0), R(0), 0, 0)
    }

    /// `to` = where the shared memory begins.
    #[must_use]
    pub fn address_of(to: R, shared: &Shared) -> [Insn; 2] {
        const MAP_VALUE: R = R(2);
        [Insn::new(0x18, to, MAP_VALUE, 0, shared.map.as_raw_fd()), Insn::new(0, R(0), R(0), 0, 0)]
    }
}

/// A program that is run for each of some cgroups; `target` is the number of the function `bpf_iter_cgroup` of this kernel.
#[derive(Debug)]
pub struct CgroupProgram(OwnedFd);

impl CgroupProgram {
    /// Loads it.
    ///
    /// # Errors
    /// As from bpf(2): `EPERM` without `CAP_BPF` and `CAP_PERFMON`; `EINVAL` and `EACCES` if the kernel does not take the program.
    pub fn load(program: &[Insn], target: u32) -> io::Result<CgroupProgram> {
        let count = u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let attr = Attr::new().word(0, PROG_TYPE_TRACING).word(4, count).pointer(8, program.as_ptr()).pointer(16, LICENCE.as_ptr());
        bpf(Command::ProgLoad, &attr.word(68, TRACE_ITER).word(108, target)).map(CgroupProgram)
    }

    /// Makes it ready to be run over a directory and everything below it, each before what it holds.
    ///
    /// # Errors
    /// As from bpf(2).
    pub fn over(&self, directory: BorrowedFd<'_>) -> io::Result<Walkable> {
        /// `union bpf_iter_link_info`, its `cgroup`.
        #[repr(C)]
        struct Info {
            order: u32,
            cgroup_fd: u32,
            cgroup_id: u64,
        }
        const INFO_BYTES: u32 = 16;
        const { assert!(size_of::<Info>() == INFO_BYTES as usize) };
        let cgroup_fd = u32::try_from(directory.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let info = Info { order: DESCENDANTS_PRE, cgroup_fd, cgroup_id: 0 };
        let attr = Attr::new().fd(0, std::os::fd::AsFd::as_fd(&self.0)).word(8, TRACE_ITER).pointer(16, &raw const info);
        bpf(Command::LinkCreate, &attr.word(24, INFO_BYTES)).map(Walkable)
    }
}

/// A program and the cgroups that it is to be run over.
#[derive(Debug)]
pub struct Walkable(OwnedFd);

impl Walkable {
    /// Runs it over all of them, in this thread.
    ///
    /// # Errors
    /// As from bpf(2) and read(2).
    pub fn walk(&self) -> io::Result<()> {
        let run = bpf(Command::IterCreate, &Attr::new().fd(0, std::os::fd::AsFd::as_fd(&self.0)))?;
        let mut nothing = [0; 64];
        // The program writes no text: the first answer is the end.
        while 0 < rustix::io::retry_on_intr(|| rustix::io::read(&run, &mut nothing))? {}
        Ok(())
    }
}

/// How the other side reads and writes the words.
pub const ORDER: Ordering = Ordering::Relaxed;
