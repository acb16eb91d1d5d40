//! The daemon's memory allocator, shared by the programs that are to measure it.
//!
//! A tick touches a little of every job. jemalloc keeps objects of one size side by side, which makes a tick of a thousand jobs about a
//! sixth cheaper than glibc's arenas do (`cargo bench --bench tick`).

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How jemalloc is set up, read by it as the process starts: one arena, since one thread does nearly all the work, and no pages kept for
/// later use for longer than a second.
#[expect(unsafe_code, reason = "jemalloc reads its options from a symbol of this name, a pointer to a C string; nothing else has the name")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static OPTIONS: &[u8; 30] = b"narenas:1,dirty_decay_ms:1000\0";
