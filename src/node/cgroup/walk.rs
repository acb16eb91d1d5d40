//! Reads CPU time and memory of all cgroups below a directory in one go, by a small program in the kernel (a cgroup iterator): a third of what
//! two `pread`s a cgroup cost.
//!
//! It tells what `cpu.stat` and `memory.current` (v1: `memory.usage_in_bytes`) tell, from the same places in the kernel. Of a cgroup that is
//! dead, or of which there is no room to tell, it says nothing: then its files are read. It needs `CAP_BPF` and `CAP_PERFMON` and Linux 6.1.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;

use crate::node::bpf::{CgroupProgram, Insn, ORDER, R, Shared, Walkable};
use crate::node::btf::{Btf, BtfError, VMLINUX};

/// What one walk can tell of at most: of more cgroups the files are read.
const RECORDS_MAX: usize = 16_384;
/// Words before the first record: how many there are, and nothing.
const HEAD_WORDS: usize = 8;
const HEAD_BYTES: i16 = 64;
/// Words of a record: the cgroup's number (its inode), CPU time in nanoseconds, memory in the kernel's pages, and nothing.
const RECORD_WORDS: usize = 4;
/// In place of a number of pages: the cgroup has no memory controller.
const NO_MEMORY: u64 = u64::MAX;

/// `bpf_probe_read_kernel` of `enum bpf_func_id`.
const PROBE_READ_KERNEL: i32 = 113;

/// Why there is no walk here.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The kernel does not describe itself, or is built otherwise.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The kernel does not describe itself, or does not take the program.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One cgroup, as a walk found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its inode.
    pub(super) inode: u64,
    /// CPU time of it and all below it, in whole microseconds as `cpu.stat` tells it, in nanoseconds.
    pub(super) cpu_ns: u64,
    /// Memory charged, in bytes, where it has a memory controller.
    pub(super) memory_bytes: Option<u64>,
}

/// Where in the kernel's structures the values lie, in bytes.
#[derive(Clone, Copy, Debug)]
struct Places {
    context_cgroup: i16,
    node: i16,
    node_id: i16,
    cpu_ns: i16,
    memory_state: i16,
    memory_pages: i32,
    target: u32,
}

impl Places {
    fn of(btf: &Btf<'_>) -> Result<Places, BtfError> {
        let near = |structure: &str, path: &[&str], by: u32| {
            let offset = btf.offset(structure, path)? + by;
            i16::try_from(offset).map_err(|_| BtfError::Unknown(format!("{structure}.{} within reach", path.join("."))))
        };
        let memory = btf.word("cgroup_subsys_id", "memory_cgrp_id")?;
        let pages = btf.offset("mem_cgroup", &["memory", "usage"])?;
        // The program takes the state's address for the memory cgroup's: it must be the first thing in it.
        if btf.offset("mem_cgroup", &["css"])? != 0 {
            return Err(BtfError::Unknown("mem_cgroup that begins with its css".to_owned()));
        }
        Ok(Places {
            context_cgroup: near("bpf_iter__cgroup", &["cgroup"], 0)?,
            node: near("cgroup", &["kn"], 0)?,
            node_id: near("kernfs_node", &["id"], 0)?,
            cpu_ns: near("cgroup", &["bstat", "cputime", "sum_exec_runtime"], 0)?,
            memory_state: near("cgroup", &["subsys"], 8 * memory)?,
            memory_pages: i32::try_from(pages).map_err(|_| BtfError::Malformed)?,
            target: btf.function("bpf_iter_cgroup")?,
        })
    }

    /// One record for the cgroup of this step, if there is room.
    fn program(&self, shared: &Shared) -> Vec<Insn> {
        let (answer, context, cgroup, memory, count, record) = (R(0), R(1), R(6), R(7), R(8), R(9));
        let (scratch, source) = (R(2), R(3));
        const { assert!(HEAD_BYTES as usize == 8 * HEAD_WORDS) };
        let head = HEAD_BYTES;
        let max = i32::try_from(RECORDS_MAX).unwrap_or(0);
        let mut program = vec![Insn::load(cgroup, context, self.context_cgroup)];
        program.push(Insn::skip_if(cgroup, 0, 25)); // the walk is over: to the end
        program.extend(Insn::address_of(memory, shared));
        program.extend([
            Insn::load(count, memory, 0),
            Insn::skip_from(count, max, 21), // no room: to the end
            Insn::copy(scratch, count),
            Insn::shift_left(scratch, 5), // 32 bytes a record
            Insn::copy(record, memory),
            Insn::add(record, scratch),
            Insn::load(scratch, cgroup, self.node),
            Insn::load(scratch, scratch, self.node_id),
            Insn::store(record, head, scratch),
            Insn::load(scratch, cgroup, self.cpu_ns),
            Insn::store(record, head + 8, scratch),
            Insn::store_value(record, head + 16, -1), // NO_MEMORY
            Insn::load(source, cgroup, self.memory_state),
            Insn::skip_if(source, 0, 7), // to the count
            Insn::add_value(source, self.memory_pages),
            Insn::set(scratch, 8),
            Insn::copy(R(1), record),
            Insn::add_value(R(1), i32::from(head) + 16),
            Insn::call(PROBE_READ_KERNEL),
            Insn::skip_if(answer, 0, 1), // else it has written 0
            Insn::store_value(record, head + 16, -1),
            Insn::add_value(count, 1),
            Insn::store(memory, 0, count),
        ]);
        program.extend([Insn::set(answer, 0), Insn::end()]);
        program
    }
}

/// The program, the memory that it writes into, and the directories that it was made ready for.
#[derive(Debug)]
pub struct Walker {
    program: CgroupProgram,
    shared: Shared,
    page_bytes: u64,
    walkable: HashMap<String, Walkable>,
}

impl Walker {
    /// Gives the program to the kernel.
    ///
    /// # Errors
    /// [`WalkError`]: then cgroups are read by their files alone.
    pub fn load() -> Result<Walker, WalkError> {
        let places = {
            let text = std::fs::read(VMLINUX)?;
            Places::of(&Btf::parse(&text)?)?
        };
        let shared = Shared::new(HEAD_WORDS + RECORDS_MAX * RECORD_WORDS)?;
        let program = CgroupProgram::load(&places.program(&shared), places.target)?;
        let page_bytes = rustix::param::page_size() as u64;
        Ok(Walker { program, shared, page_bytes, walkable: HashMap::new() })
    }

    /// All live cgroups below a directory, and it itself, as far as there is room; each before those in it, and in the same order as the last
    /// time but for those that have come or gone.
    ///
    /// # Errors
    /// As from bpf(2).
    pub(super) fn walk(&mut self, path: &str, directory: BorrowedFd<'_>) -> io::Result<impl Iterator<Item = Found> + '_> {
        if !self.walkable.contains_key(path) {
            let ready = self.program.over(directory)?;
            self.walkable.insert(path.to_owned(), ready);
        }
        let words = self.shared.words();
        words[0].store(0, ORDER);
        if let Some(walkable) = self.walkable.get(path) {
            walkable.walk()?;
        }
        let count = usize::try_from(words[0].load(ORDER)).unwrap_or(0).min(RECORDS_MAX);
        let page_bytes = self.page_bytes;
        let found = move |record: &[std::sync::atomic::AtomicU64]| {
            let word = |nth: usize| record[nth].load(ORDER);
            let pages = Some(word(2)).filter(|pages| *pages != NO_MEMORY);
            Found { inode: word(0), cpu_ns: word(1) / 1_000 * 1_000, memory_bytes: pages.map(|pages| pages.saturating_mul(page_bytes)) }
        };
        Ok(words[HEAD_WORDS..].chunks_exact(RECORD_WORDS).take(count).map(found))
    }

    /// A directory is not walked any more.
    pub(super) fn forget(&mut self, path: &str) {
        self.walkable.remove(path);
    }
}
