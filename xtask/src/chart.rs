//! `chart`: the Helm chart rendered with each values file of `helm/tests`, held to golden files and to the schemas of
//! Kubernetes; refused values to their messages; the Dockerfile to its linter.
//!
//! What the rendered manifests mean is judged in `integration/tests/chart`, on the golden files; that `values.yaml`, its schema
//! and the table of the README agree, is part of `tidy` as well.

mod render;
mod tools;
pub mod values;

use crate::place::root;
use anyhow::{Result, bail};
use render::Helm;

/// How the chart is checked.
#[derive(clap::Args)]
pub struct Options {
    /// Write what is rendered now into the golden files and the README's table, to be looked at with `git diff`.
    #[arg(long)]
    bless: bool,
}

/// Checks the chart; fails when something is wrong.
pub fn run(options: &Options) -> Result<()> {
    let (passed, findings) = findings(options.bless)?;
    for finding in &findings {
        eprintln!("chart: {finding}");
    }
    if findings.is_empty() {
        eprintln!("chart: {passed} checks passed");
        Ok(())
    } else {
        bail!("{} findings in the chart", findings.len())
    }
}

/// Number of checks that passed, and what is wrong, one sentence each.
///
/// - `bless`: makes golden files and table agree instead of complaining
pub fn findings(bless: bool) -> Result<(u32, Vec<String>)> {
    let tools = tools::fetch()?;
    let helm = Helm::new(&tools);
    let mut findings = Vec::new();
    if bless {
        values::write_table(root())?;
    }
    findings.extend(values::findings(root())?);
    let mut checks = 1;
    for step in [
        helm.lint()?,
        helm.golden(bless)?,
        helm.refused()?,
        helm.notes()?,
        helm.packaged()?,
        render::schemas(&tools)?,
        render::dockerfile(&tools)?,
    ] {
        checks += step.checks;
        findings.extend(step.findings);
    }
    let failed = u32::try_from(findings.len()).unwrap_or(u32::MAX);
    Ok((checks.saturating_sub(failed), findings))
}
