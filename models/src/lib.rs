//! Native transformer models.

pub mod kernels;
