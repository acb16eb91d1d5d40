//! meterd meters the jobs of a compute node, prices what they use, and stops those whose prepaid account is empty.
//!
//! # Bird's-eye view
//!
//! An accountant who writes down everything, and has hands. A pure core turns what was seen into *facts*; facts are made durable; the
//! state is what applying them gives; from the state alone it says what it *wants* of the world; hands carry that out, and may do so
//! twice without harm.
//!
//! ```text
//!   kernel, driver, callers, authority
//!        |  samples, calls, answers                                 (node/: one outside thing a file)
//!        v
//!   event -> facts -> commit -> apply -> wants -> [durable?] -> freeze, thaw, kill; answers; questions
//!        (domain/: pure)                                            (node/: hands, local API, authority)
//! ```
//!
//! Time is an argument: no clock is read in the core, and nothing there waits, logs, or computes with floats. After a crash the facts
//! are read again, give the same state, and so the same wants come back. What one side tells another are running totals, never
//! differences: a message that is lost, doubled or late changes nothing.
//!
//! # Reading order
//!
//! 1. [`domain::usage`], [`domain::meter`]: what is measured, and how two sightings become usage.
//! 2. [`domain::rates`]: cards, and the one arithmetic rule: price the cumulative quantity, round once a line.
//! 3. [`domain::job`], [`domain::fact`]: what is known of a job, and what can happen to it.
//! 4. [`domain::wire`], [`domain::grant`], [`domain::ledger`]: how a node comes to credit, and what the authority keeps.
//! 5. [`domain::agent`]: facts, `apply`, `wants`. Then [`domain::turn`]: one turn, and what waits for the disk.
//! 6. [`node::run`]: the loop where the world meets the turn; [`node::daemon`] puts it together. Each other file of [`node`] is one
//!    outside thing and can be read alone.
//! 7. [`authority::server`] is the authority for a fleet; [`node::upstream`] is how an agent speaks to it.
//!
//! # Invariants
//!
//! - Only `apply` changes the agent's state. What is applied came from a fact; what is wanted comes from the state.
//! - Nobody outside hears of a fact before it is on disk. The one exception is a freeze of an account that is durably *armed*.
//! - `charge = drawn + unfunded + owed + waived`, for every job at every instant; at its close `owed` is nothing. `waived` is nothing but by
//!   the job's outcome.
//! - For every account: granted and not settled + settled <= deposited.
//! - A reading that could not be made is `Missing` with its reason. It is never zero, and it never stops a job.
//! - A cgroup is written to only through a kept descriptor whose inode is the one that was named.
//! - Amounts are integers of nano-credits; a price is an exact decimal; no money is a float.
//! - The journal's formats are append only: a decoder, once shipped, is kept.
//!
//! # Glossary: one word for each idea
//!
//! | word | meaning |
//! |---|---|
//! | account | who pays: a balance at the authority |
//! | act | what the hands do to a job: freeze, thaw, terminate, kill, remove |
//! | allowance | free credit that is given each month and lapses when the next is given |
//! | armed | on disk: this account may be empty from that instant on, so a freeze then need not wait for the disk |
//! | attempt | one run of a job; a name that runs again is another attempt |
//! | authority | who keeps the balances; embedded in the agent over a file of its own, or for a fleet, over HTTPS |
//! | burn | credits per second, measured or greatest possible |
//! | card | a rate card: what each meter costs |
//! | charge | the price of all that a job has used |
//! | drawn | the part of a charge that came out of grants |
//! | engine | a billing engine outside, which keeps balances and is told of use |
//! | enforcement | how far the agent goes: observe, notify, enforce |
//! | epoch | one spending life of a node: begins with a reboot or a lost journal |
//! | evidence | counter, charge and balance at the moment of a decision |
//! | fact | what was seen or decided, immutable, in order |
//! | fork | several write under one epoch: a machine or a journal was copied while it ran |
//! | gap | a stretch that nobody could read, and the rule applied to it |
//! | generation | how often a store was put back from a copy; only the order counts |
//! | grant | credit moved from the balance to a node before it is spent |
//! | hands | the thread that freezes, thaws and kills |
//! | held | a GPU is held by a job from its start to its end, used or not |
//! | in hand | granted - returned - spent: what a node may still spend |
//! | job | what is metered: a set of cgroups, a Slurm job, or a process tree |
//! | journal | the facts on disk, each chained to the one before by its hash |
//! | line | one price on a card |
//! | link | how an agent gets on with an authority over the network |
//! | lot | a part of a balance with one bucket, priority and expiry |
//! | mark | a note in memory that a job's freeze is ours, made before the freeze |
//! | meter | one thing that is measured and priced |
//! | mirrored | of an account: its balance is kept by an engine, and what it holds here follows what that says |
//! | owed | used, and neither drawn nor written off yet |
//! | picture | the state as it is shown, one a tick |
//! | policy | what an account's owner wants its nodes to do |
//! | proof | the authority's mark on what it granted: only it can make one, so a claim above its store is believed by it alone |
//! | recall | the authority's word that credit is to be given back |
//! | receipt | what one attempt used, what that costs line by line, who paid, and why it was stopped |
//! | recovery | the time after a restore in which a store grants nothing, since it may have forgotten grants that are still good |
//! | refill | credit that is asked for when a balance falls below a threshold, and paid by the site |
//! | refund | what a job's outcome gives back of what it was charged as it ran |
//! | revocation | credit that an account's owner takes back |
//! | segment | a job's time under one card |
//! | settled | what the authority has charged of an epoch |
//! | target | where a job's tasks are |
//! | terms | what the authority itself does for an account |
//! | tick | a look at all jobs, on schedule |
//! | unfunded | used past zero and written off |
//! | waived | what of a refund was owed and need not be paid |
//! | verdict | the authority's word on an account |
//! | walk | CPU time and memory of all cgroups below a directory, told in one go by a program in the kernel |

pub mod authority;
pub mod ctl;
pub mod demo;
pub mod domain;
pub mod node;
mod sqlite;
pub mod tls;
