//! Tells at once when a job has no tasks left, so that the final reading comes before the scheduler removes its cgroup.

use std::io;
use std::sync::Arc;

use super::layout::Layout;
use crate::domain::act::Target;
use crate::domain::id::Attempt;
use crate::domain::meter::Missing;

/// The thread that waits. Dropping it ends the thread.
pub struct Watch {}

impl Watch {
    /// Starts the thread. `on_empty` is called on it when the last task of a job has ended (or its cgroup has gone).
    ///
    /// # Errors
    /// When the kernel gives no thread or descriptor.
    pub fn start(layout: Option<Arc<Layout>>, on_empty: impl FnMut(Attempt) + Send + 'static) -> io::Result<Watch> {
        let _ = (layout, on_empty);
        todo!()
    }

    /// Watches a job from now on. Adding it again replaces what was watched for it.
    ///
    /// # Errors
    /// Why it cannot be watched: [`Missing::NotYet`] for a Slurm job whose cgroup is not there, [`Missing::Vanished`], [`Missing::Replaced`].
    pub fn add(&self, attempt: Attempt, target: &Target) -> Result<(), Missing> {
        let _ = (attempt, target);
        todo!()
    }

    /// Watches it no more.
    pub fn remove(&self, attempt: Attempt) {
        let _ = attempt;
    }
}
