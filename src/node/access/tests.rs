use super::*;
use crate::domain::act::SlurmJob;
use crate::domain::ladder::JobPolicy;
use crate::domain::request::GpuWanted;

fn access() -> Access {
    let lab: AccountId = "lab".parse().unwrap();
    Access {
        agent: Uid(990),
        operators_gid: Some(77),
        hooks: BTreeSet::from([Uid(500)]),
        accounts: BTreeMap::from([(Uid(1000), BTreeSet::from([lab]))]),
    }
}

fn local(uid: u32, groups: &[u32]) -> Who {
    Who::Local { uid: Uid(uid), groups: groups.to_vec() }
}

fn start() -> StartRequest {
    StartRequest {
        traits: BTreeMap::new(),
        job: "u1000-train".parse().unwrap(),
        account: "lab".parse().unwrap(),
        owner: None,
        place: Place::Own,
        gpus: Vec::new(),
        time_limit: None,
        cpus: None,
        memory_bytes: None,
        policy: JobPolicy::default(),
        bid: None,
        storage_bytes: None,
        gang: None,
    }
}

fn code(result: Result<(), Refusal>) -> String {
    result.map_or_else(|refusal| refusal.code, |()| "allowed".to_owned())
}

#[test]
fn everybody_has_one_column_of_the_table() {
    let access = access();
    assert_eq!(access.standing(&Who::Stranger), Standing::Stranger);
    assert_eq!(access.standing(&local(1000, &[1000])), Standing::User);
    assert_eq!(access.standing(&local(500, &[500])), Standing::Hook);
    assert_eq!(access.standing(&local(0, &[0])), Standing::Operator);
    assert_eq!(access.standing(&local(990, &[990])), Standing::Operator, "the agent's own user");
    assert_eq!(access.standing(&local(1000, &[1000, 77])), Standing::Operator, "a member of the operators' group");
    let no_group = Access { operators_gid: None, ..access };
    assert_eq!(no_group.standing(&local(1000, &[1000, 77])), Standing::User);
}

#[test]
fn the_table_holds_row_by_row() {
    let access = access();
    let request = start();
    let foreign = StartRequest { place: Place::Cgroups(vec!["/sys/fs/cgroup/a".to_owned()]), ..start() };
    let name: JobName = "slurm-1".parse().unwrap();
    let rows: [(Ask<'_>, [&str; 4]); 8] = [
        (Ask::Aggregates, ["allowed", "allowed", "allowed", "allowed"]),
        (Ask::AccountMetrics, ["socket_only", "not_permitted", "not_permitted", "allowed"]),
        (Ask::Jobs, ["socket_only", "allowed", "allowed", "allowed"]),
        (Ask::Start(&request), ["socket_only", "allowed", "allowed", "allowed"]),
        (Ask::Start(&foreign), ["socket_only", "not_permitted", "allowed", "allowed"]),
        (Ask::Stop(&name, Some(Uid(7))), ["socket_only", "unknown_job", "allowed", "allowed"]),
        (Ask::Change, ["socket_only", "not_permitted", "allowed", "allowed"]),
        (Ask::Administer, ["socket_only", "not_permitted", "not_permitted", "allowed"]),
    ];
    for (ask, expected) in rows {
        let found = [Who::Stranger, local(1000, &[]), local(500, &[]), local(0, &[])].map(|who| code(access.check(&who, ask)));
        assert_eq!(found, expected, "{ask:?}");
    }
}

#[test]
fn a_user_starts_only_what_is_its_own() {
    let access = access();
    let check = |request: StartRequest| code(access.check(&local(1000, &[]), Ask::Start(&request)));
    assert_eq!(check(start()), "allowed");
    assert_eq!(check(StartRequest { owner: Some(Uid(1000)), ..start() }), "allowed");
    assert_eq!(check(StartRequest { owner: Some(Uid(0)), ..start() }), "not_permitted");
    assert_eq!(check(StartRequest { gpus: vec![GpuWanted::Index(0)], ..start() }), "not_permitted");
    assert_eq!(check(StartRequest { place: Place::Process(1), ..start() }), "not_permitted");
    assert_eq!(check(StartRequest { place: Place::Slurm(SlurmJob { job_id: 1, sluid: None }), ..start() }), "not_permitted");
    assert_eq!(check(StartRequest { job: "u10-x".parse().unwrap(), ..start() }), "not_permitted");
    let gang = |name: &str| Some(crate::domain::gang::Gang { name: name.parse().unwrap(), attempt: 0, size: None });
    assert_eq!(check(StartRequest { gang: gang("slurm:7"), ..start() }), "not_permitted", "others of the account may be in it");
    assert_eq!(check(StartRequest { gang: gang("u1000-mpi"), ..start() }), "allowed");
    assert_eq!(check(StartRequest { job: "u10000-x".parse().unwrap(), ..start() }), "not_permitted", "the prefix ends with its dash");
    assert_eq!(check(StartRequest { account: "other".parse().unwrap(), ..start() }), "account_not_mapped");
}

#[test]
fn the_user_that_an_unprivileged_agent_runs_as_may_name_processes() {
    let request = StartRequest { place: Place::Process(1), job: "x".parse().unwrap(), ..start() };
    assert_eq!(code(access().check(&local(990, &[]), Ask::Start(&request))), "allowed");
}

#[test]
fn a_user_stops_its_own_jobs_and_does_not_learn_of_others() {
    let access = access();
    let own: JobName = "u1000-train".parse().unwrap();
    let stop = |owner| code(access.check(&local(1000, &[]), Ask::Stop(&own, owner)));
    assert_eq!(stop(Some(Uid(1000))), "allowed");
    assert_eq!(stop(None), "allowed", "started a moment ago");
    assert_eq!(stop(Some(Uid(1))), "unknown_job", "an operator gave that name to another's job");
    let other: JobName = "u1-x".parse().unwrap();
    assert_eq!(code(access.check(&local(1000, &[]), Ask::Stop(&other, None))), "unknown_job");
}

#[test]
fn a_user_sees_its_own_jobs_and_mapped_accounts_alone() {
    let access = access();
    let (lab, other): (AccountId, AccountId) = ("lab".parse().unwrap(), "other".parse().unwrap());
    assert!(access.sees_job(&local(1000, &[]), Uid(1000)));
    assert!(!access.sees_job(&local(1000, &[]), Uid(1001)));
    assert!(access.sees_job(&local(500, &[]), Uid(1001)));
    assert!(!access.sees_job(&Who::Stranger, Uid(1000)));
    assert!(access.sees_account(&local(1000, &[]), &lab));
    assert!(!access.sees_account(&local(1000, &[]), &other));
    assert!(!access.sees_account(&local(500, &[]), &other), "a hook starts jobs; balances are not its business");
    assert!(access.sees_account(&local(0, &[]), &other));
}
