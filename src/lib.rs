//! tfcheck runs one checkpoint and one frozen input through many variants of a transformer and says
//! who computes what, how fast, and who is wrong.

pub mod compare;
pub mod report;
pub mod results;
pub mod timing;
pub mod variant;
