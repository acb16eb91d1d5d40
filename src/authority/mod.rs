//! The authority's edges: the pure ledger behind a store.

pub mod embedded;
pub mod store;
