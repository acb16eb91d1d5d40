//! Carries out orders: freezes before all else, and says what came of each.

use std::io;
use std::sync::Arc;

use super::layout::Layout;
use super::priority::Scheduling;
use super::process_tree::ProcessTrees;
use crate::domain::act::{Acted, Order};
use crate::domain::meter::Reading;

/// Orders that may wait in each of the two queues.
pub const QUEUE_MAX: usize = 8_192;

/// The queue is full (or the hands have stopped): try again at the next turn.
#[derive(Debug, thiserror::Error)]
#[error("the hands are busy: {} of attempt {} was not taken", .0.act, .0.attempt)]
pub struct Busy(pub Order);

/// The thread that acts. Dropping it ends the thread after the orders already taken.
pub struct Hands {}

impl Hands {
    /// Starts the thread. `report` is called on it, once for each order.
    ///
    /// # Errors
    /// When the kernel gives no thread or descriptor.
    pub fn start(layout: Option<Arc<Layout>>, trees: ProcessTrees, report: impl FnMut(Acted) + Send + 'static) -> io::Result<Hands> {
        let _ = (layout, trees, report);
        todo!()
    }

    /// Hands over an order; freezes overtake all others.
    ///
    /// # Errors
    /// Gives the order back when its queue is full.
    pub fn submit(&self, order: Order) -> Result<(), Busy> {
        Err(Busy(order))
    }

    /// What scheduling the thread got.
    #[must_use]
    pub fn scheduling(&self) -> Reading<Scheduling> {
        todo!()
    }
}
