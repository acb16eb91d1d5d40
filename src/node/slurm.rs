//! What Slurm calls its cgroups, and which of them may be touched.
