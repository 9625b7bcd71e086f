//! What the Helm chart's manifests mean, read from the golden files in `helm/tests/golden`. That helm renders exactly
//! these, and that Kubernetes' schemas accept them, is the stage `chart` of `cargo xtask test`.
//!
//! Needs neither root nor a cluster.

mod istio;
mod manifest;
mod names;
mod ours;
