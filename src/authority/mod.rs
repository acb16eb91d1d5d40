//! The authority's edges: the pure ledger behind a store; for one machine inside the agent, for a fleet behind HTTPS.
//!
//! [`server`] is the way in: TLS, who calls ([`identity`]), how much of it. [`grants`] answers nodes, [`events`] tells them that something
//! changed, [`admin`] answers people. All of them ask the one [`store`] through [`embedded`]. Where a billing engine keeps
//! balances, [`engine`] tells it of use and has the store follow what it says.

pub mod admin;
pub mod audit;
pub mod config;
pub mod embedded;
pub mod engine;
pub mod events;
pub mod grants;
pub mod identity;
mod measure;
pub mod openapi;
pub mod proof_key;
pub mod reply;
mod routes;
pub mod run;
pub mod server;
pub mod store;
