//! No core: the agent's memory holds everybody's jobs, accounts and payments, and a core file lies wherever the machine's pattern says,
//! or goes to whatever program it names.

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, geteuid, set_dumpable_behavior};

use super::defence::{Defence, stands};

/// From now on this process leaves no core, whatever its limits, and is traced by nobody who may not trace every process. An agent that
/// does not run as root knows nothing that its user may not see.
///
/// # Errors
/// What the kernel said.
pub fn forbid() -> Result<(), Errno> {
    if !geteuid().is_root() || !stands(Defence::NoCore) {
        return Ok(());
    }
    // Not by the limit on a core's size: a pattern that names a program is not bound by it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}
