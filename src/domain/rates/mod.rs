//! What usage costs: the rate card as an operator writes it, and exact arithmetic over it.
//!
//! A charge is the price of the *cumulative* usage, rounded once per rate line: it does not depend on the length of a tick,
//! on restarts or on lost messages (guarantee 1). Receipts hold what is needed to compute it again (guarantee 9).

pub mod bid;
mod bill;
pub mod card;
pub mod charge;
pub mod check;
pub mod explain;
pub mod most;
pub mod rules;
pub mod signature;
mod stored;
pub mod unit;

pub use bill::Described;
pub use card::{Card, CardFlaw, GpuSelector, Line, Rounding, Stated, Uncovered};
pub use charge::{Earlier, LineCharge, Priced, RateError, Shape};
pub use rules::{Anchor, Basis, Factor, Month, OverBid, Rules, Started, StateRates, Tier, Timing, Trait, Traits};
pub use signature::{CardKey, SecretCardKey};
pub use unit::Unit;
