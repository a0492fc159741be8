//! One module per subcommand.

pub mod bench;
pub mod bisect;
pub mod check_worker;
pub mod compare;
pub mod explain;
pub mod gpu_check;
pub mod list;
pub mod merge;
pub mod record;
pub mod run;
pub mod scoreboard;
pub mod slurm;
