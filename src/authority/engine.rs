//! A billing engine that keeps the balances of accounts: it is told of use, and asked for balances. It answers neither at once nor exactly, so the
//! authority stands between it and the nodes: they have grants of what surely is there.
//!
//! [`kinds`] knows what each engine's messages look like, [`exact`] reads their numbers, [`http`] carries them, [`pace`] says when, and [`run`] is
//! the thread that does it. What is told and what follows is kept by [`crate::authority::store::mirror`].

pub mod config;
pub mod exact;
pub mod http;
pub mod kinds;
pub mod pace;
pub mod run;
pub mod status;

use crate::domain::time::Nanos;

/// Something that is no answer. It changes no balance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A stable word: `unreachable`, `refused_401`, `malformed_balance` …
    pub code: &'static str,
    /// In a sentence; holds no secret.
    pub message: String,
    /// For how long the engine wants to be left alone.
    pub wait: Nanos,
    /// Whose fault is it?
    pub of: FaultOf,
}

/// Whose fault is it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOf {
    /// The engine's, or of the way to it: all questions wait.
    Engine,
    /// Of one account: the others go on.
    Account,
    /// Of one of several events: they are to be sent in smaller parts.
    Part,
}

impl Failure {
    /// One of the engine.
    pub fn new(code: &'static str, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), wait: Nanos(0), of: FaultOf::Engine }
    }

    /// One of what it says about an account.
    pub fn of_account(code: &'static str, message: impl Into<String>) -> Failure {
        Failure { of: FaultOf::Account, ..Failure::new(code, message) }
    }
}
