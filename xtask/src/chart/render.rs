//! Runs helm over the values files, and the other judges over what it rendered.
//!
//! A values file may begin with comments that tell more: `# helm: <arguments>`, and, where it is to be refused, `# says: <text>`.

use super::tools::Tools;
use crate::place::root;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const CHART: &str = "helm/ztunnel";
const VALUES: &str = "helm/tests/values";
const GOLDEN: &str = "helm/tests/golden";
const REFUSED: &str = "helm/tests/refused";
/// Release and namespace of the golden files.
const RELEASE: [&str; 3] = ["ztunnel", "--namespace", "istio-system"];
/// Kubernetes whose schemas judge the manifests, unless the values file asks for another.
const KUBERNETES: &str = "1.34";
/// Kinds that are no part of Kubernetes: there is no schema for them.
const FOREIGN: [&str; 3] = ["ServiceMonitor", "PodMonitor", "PrometheusRule"];

/// What one kind of check came to.
#[derive(Default)]
pub struct Step {
    /// How many checks were made.
    pub checks: u32,
    /// What is wrong.
    pub findings: Vec<String>,
}

impl Step {
    fn judge(&mut self, finding: Option<String>) {
        self.checks += 1;
        self.findings.extend(finding);
    }
}

/// Helm, over this repository's chart.
pub struct Helm<'a> {
    tools: &'a Tools,
}

impl<'a> Helm<'a> {
    /// With the fetched program.
    pub fn new(tools: &'a Tools) -> Self {
        Self { tools }
    }

    /// `helm lint` with each values file.
    pub fn lint(&self) -> Result<Step> {
        let mut step = Step::default();
        for case in Case::all(VALUES)? {
            let output = self.ask(&["lint", "--strict", "--quiet", CHART], Some(&case))?;
            let bad = !output.status.success();
            step.judge(bad.then(|| format!("helm lint with {}: {}", case.name, said(&output))));
        }
        Ok(step)
    }

    /// Each values file renders what its golden file says.
    pub fn golden(&self, bless: bool) -> Result<Step> {
        let mut step = Step::default();
        let cases = Case::all(VALUES)?;
        for case in &cases {
            let output = self.template(CHART, Some(case))?;
            if !output.status.success() {
                step.judge(Some(format!("{}: {}", case.name, said(&output))));
                continue;
            }
            let path = golden(&case.name);
            let fresh = String::from_utf8(output.stdout).context("helm wrote no UTF-8")?;
            if bless {
                std::fs::write(&path, &fresh)?;
            }
            let wanted = std::fs::read_to_string(&path).unwrap_or_default();
            step.judge(difference(&case.name, &wanted, &fresh));
        }
        for file in yaml_files(GOLDEN)? {
            let name = stem(&file);
            if !cases.iter().any(|case| case.name == name) {
                step.judge(Some(format!("{GOLDEN}/{name}.yaml has no values file")));
            }
        }
        Ok(step)
    }

    /// Each values file of `refused` is refused, and with its words.
    pub fn refused(&self) -> Result<Step> {
        let mut step = Step::default();
        for case in Case::all(REFUSED)? {
            let words = case
                .says
                .as_deref()
                .with_context(|| format!("{} does not say why it is refused", case.name))?;
            let output = self.template(CHART, Some(&case))?;
            let told = !output.status.success() && said(&output).contains(words);
            step.judge((!told).then(|| {
                format!(
                    "{REFUSED}/{}.yaml should be refused with \"{words}\": {}",
                    case.name,
                    said(&output)
                )
            }));
        }
        Ok(step)
    }

    /// The notes name the commands that a newcomer needs, under the release's own names.
    pub fn notes(&self) -> Result<Step> {
        let args = [
            "install",
            RELEASE[0],
            CHART,
            "--namespace",
            "mesh",
            "--dry-run=client",
            "--set",
            "resourceName=node-proxy",
        ];
        let output = self.ask(&args, None)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let notes = text.split_once("NOTES:").map_or("", |(_, notes)| notes);
        let mut step = Step::default();
        for words in [
            "kubectl label namespace <namespace> istio.io/dataplane-mode=ambient",
            "kubectl -n mesh exec daemonset/node-proxy -- ztunnel check",
            "kubectl -n mesh logs daemonset/node-proxy",
            "trustedZtunnelName=node-proxy",
        ] {
            let absent = !notes.contains(words);
            step.judge(absent.then(|| format!("the notes lack \"{words}\": {}", said(&output))));
        }
        Ok(step)
    }

    /// The packaged chart renders the same: nothing that it needs is ignored.
    pub fn packaged(&self) -> Result<Step> {
        let place = crate::place::target().join("chart/package");
        let _ = std::fs::remove_dir_all(&place);
        let to = place.to_string_lossy().into_owned();
        let mut step = Step::default();
        let output = self.ask(&["package", CHART, "--destination", &to], None)?;
        if !output.status.success() {
            step.judge(Some(format!("helm package: {}", said(&output))));
            return Ok(step);
        }
        let archive = std::fs::read_dir(&place)?
            .next()
            .context("helm package wrote no file")??
            .path();
        let cases = Case::all(VALUES)?;
        let case = cases
            .iter()
            .find(|case| case.name == "alerts-and-dashboard")
            .context("no values file alerts-and-dashboard")?;
        let output = self.template(&archive.to_string_lossy(), Some(case))?;
        let same = std::fs::read(golden(&case.name)).is_ok_and(|wanted| wanted == output.stdout);
        step.judge((!same).then(|| {
            format!(
                "the packaged chart renders something else: {}",
                said(&output)
            )
        }));
        Ok(step)
    }

    fn template(&self, chart: &str, case: Option<&Case>) -> Result<Output> {
        let mut args = vec!["template"];
        args.extend(RELEASE);
        args.push(chart);
        self.ask(&args, case)
    }

    fn ask(&self, args: &[&str], case: Option<&Case>) -> Result<Output> {
        let mut command = Command::new(&self.tools.helm);
        command.args(args);
        if let Some(case) = case {
            command
                .arg("--values")
                .arg(&case.file)
                .args(&case.arguments);
        }
        output(&mut command)
    }
}

/// The golden files against the schemas of Kubernetes, all at once.
pub fn schemas(tools: &Tools) -> Result<Step> {
    let mut step = Step::default();
    for case in Case::all(VALUES)? {
        let asked = case
            .arguments
            .iter()
            .skip_while(|word| *word != "--kube-version")
            .nth(1);
        let version = asked
            .and_then(|full| full.rsplit_once('.'))
            .map_or(KUBERNETES, |(minor, _)| minor);
        let mut command = Command::new(tools.bin.join("kubernetes-validate"));
        command
            .args(["--strict", "--kubernetes-version", version])
            .arg(golden(&case.name));
        let output = output(&mut command)?;
        let text = said(&output);
        let foreign = |line: &str| {
            let mut kinds = FOREIGN.iter();
            line.starts_with("WARN")
                && kinds.any(|kind| line.contains(&format!("for kind {kind} ")))
        };
        let fine = |line: &str| line.trim().is_empty() || line.starts_with("INFO") || foreign(line);
        let complaints: Vec<&str> = text.lines().filter(|line| !fine(line)).collect();
        let bad = !output.status.success() || !complaints.is_empty();
        step.judge(bad.then(|| format!("{}: {}", case.name, complaints.join("; "))));
    }
    Ok(step)
}

/// The Dockerfile, by hadolint.
pub fn dockerfile(tools: &Tools) -> Result<Step> {
    let mut step = Step::default();
    let output = output(Command::new(tools.bin.join("hadolint")).arg("Dockerfile"))?;
    let bad = !output.status.success();
    step.judge(bad.then(|| format!("hadolint: {}", said(&output))));
    Ok(step)
}

/// One values file.
struct Case {
    name: String,
    file: PathBuf,
    /// More arguments for helm.
    arguments: Vec<String>,
    /// What helm must say.
    says: Option<String>,
}

impl Case {
    fn all(dir: &str) -> Result<Vec<Self>> {
        let cases: Vec<Self> = yaml_files(dir)?
            .into_iter()
            .map(|file| Self::read(&file))
            .collect::<Result<_>>()?;
        anyhow::ensure!(!cases.is_empty(), "{dir} has no values files");
        Ok(cases)
    }

    fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let comment = |word: &str| text.lines().find_map(|line| line.strip_prefix(word));
        let arguments = comment("# helm: ").unwrap_or_default();
        Ok(Self {
            name: stem(file),
            file: file.to_owned(),
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
            says: comment("# says: ").map(str::to_owned),
        })
    }
}

fn yaml_files(dir: &str) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(root().join(dir))
        .with_context(|| format!("cannot list {dir}"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|ending| ending == "yaml"));
    files.sort();
    Ok(files)
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn golden(name: &str) -> PathBuf {
    root().join(GOLDEN).join(format!("{name}.yaml"))
}

fn output(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .current_dir(root())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {name}"))
}

fn said(output: &Output) -> String {
    let both = [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    both.join("\n").trim().to_owned()
}

/// The first line that differs.
fn difference(name: &str, wanted: &str, fresh: &str) -> Option<String> {
    if wanted == fresh {
        return None;
    }
    let mut pairs = wanted
        .lines()
        .map(Some)
        .chain(std::iter::repeat(None))
        .zip(fresh.lines().map(Some).chain([None]));
    let (number, (old, new)) = pairs
        .by_ref()
        .enumerate()
        .find(|(_, (old, new))| old != new)?;
    Some(format!(
        "{GOLDEN}/{name}.yaml, line {}: {:?}, but helm renders {:?}; `cargo xtask chart --bless` takes it over",
        number + 1,
        old.unwrap_or_default(),
        new.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_told() {
        assert_eq!(difference("a", "x\ny\n", "x\ny\n"), None);
        for (wanted, fresh, place) in [
            ("x\ny\n", "x\nz\n", "line 2: \"y\", but helm renders \"z\""),
            ("x\n", "x\ny\n", "line 2: \"\""),
            ("x\ny\n", "x\n", "line 2: \"y\", but helm renders \"\""),
        ] {
            let told = difference("a", wanted, fresh).unwrap_or_default();
            assert!(told.contains(place), "{told}");
        }
    }
}
