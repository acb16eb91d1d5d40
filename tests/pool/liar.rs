//! What a node says on which somebody has root: whatever might bring him credit, or harm others.

use meterd::domain::id::Epoch;
use meterd::domain::money::Credits;
use meterd::domain::wire::{PreviousEpoch, Request};

use crate::rng::Rng;

/// A request with a lie in each of its entries; `others` are epochs that were spoken under, his own and others'.
pub(crate) fn lie(rng: &mut Rng, mut request: Request, others: &[Epoch]) -> Request {
    for entry in &mut request.entries {
        let amount = Credits::from_nano(i128::from(rng.below(1 << 40)));
        match rng.below(8) {
            0 => entry.spent = amount,
            1 => entry.returned = amount,
            2 => entry.unfunded = amount,
            3 => entry.burn_per_s = amount,
            4 => entry.spent = Credits::ZERO,
            // Given back once, and then never.
            5 => entry.returned = Credits::ZERO,
            6 => entry.granted_seen = entry.granted_seen.plus(amount),
            _ => entry.owed = amount,
        }
    }
    if rng.chance(200) {
        request.request = rng.below(request.request + 3);
    }
    match rng.below(10) {
        0 if !others.is_empty() => request.epoch = rng.pick(others),
        1 => {
            let epoch = if others.is_empty() || rng.chance(500) { Epoch(rng.bytes16()) } else { rng.pick(others) };
            request.previous.push(PreviousEpoch { epoch, entries: request.entries.clone() });
        }
        _ => {}
    }
    request
}
