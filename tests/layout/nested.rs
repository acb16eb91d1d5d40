//! Directories of one job inside another's, on the real kernel.

use meterd::domain::act::Target;
use meterd::domain::meter::Reading;
use meterd::node::cgroup::{AttachError, Which};
use meterd::node::cgroup_dir::identify;
use meterd::node::layout::Controller::{Cpuacct, Freezer, Memory};

use crate::world::{JOB, OTHER, Task, World, one, wait_until};

#[test]
fn memory_of_a_job_inside_another_one_is_not_that_ones_and_both_are_looked_at_together() {
    let Some(world) = World::make(&[Memory, Cpuacct, Freezer], None) else { return };
    let (outer, inner) = (world.own("outer"), world.own("outer.inner"));
    // Inside: the same name one level below, in each hierarchy.
    let inside: Vec<_> = outer.iter().map(|dir| World::path(Some(dir.path.as_ref()), "inner")).collect();
    let inside: Vec<_> = inside.iter().map(|path| identify(&world.layout, path).unwrap()).collect();
    let mut sampler = world.sampler();
    sampler.attach(JOB, &Target::OwnCgroups(outer.clone())).unwrap();
    sampler.attach(OTHER, &Target::Cgroups(inside.clone())).unwrap();
    let _task = Task::in_job(&inside, "x=$(head -c 33554432 /dev/zero | tr '\\0' x); sleep 1000");
    wait_until("32 MiB inside", || one(&mut sampler, OTHER).memory_bytes.seen().is_some_and(|bytes| 32 << 20 < *bytes));
    let seen = sampler.sample(Which::Only(&[JOB]));
    assert_eq!(seen.iter().map(|sample| sample.attempt).collect::<Vec<_>>(), [JOB, OTHER], "what is inside comes along");
    assert!(*seen[0].memory_bytes.seen().unwrap() < 8 << 20, "{:?}", seen[0].memory_bytes);
    sampler.detach(OTHER);
    assert!(32 << 20 < *one(&mut sampler, JOB).memory_bytes.seen().unwrap(), "it is the outer one's again");
    // Partly inside: nobody could tell what is whose.
    let half: Vec<_> = inside.iter().chain(&inner).cloned().collect();
    assert!(matches!(sampler.attach(OTHER, &Target::Cgroups(half)), Err(AttachError::PartlyInside(JOB))));
    assert_ne!(one(&mut sampler, JOB).memory_bytes, Reading::Seen(0));
}
