//! A node whose pods come from the agent and whose traffic is captured by the agent's rules.

use std::path::PathBuf;

use anyhow::Result;

use super::agent::{Agent, Answer, Entry};
use super::rules::Rules;
use crate::pod::Pod;
use crate::world::Node;

/// A node with its agent. Daemons are started on [`Site::node`].
pub struct Site {
    /// the node, with the variables that lead its daemons to the agent
    pub node: Node,
    /// the agent
    pub agent: Agent,
}

impl Site {
    /// An agent on the node, with an empty cache.
    ///
    /// Errors: its socket cannot be made.
    pub fn raise(node: &Node) -> Result<Self> {
        Ok(Self {
            agent: Agent::start(&socket(node))?,
            node: settings(node),
        })
    }

    /// What the agent does with a pod that comes: rules first, then the newest proxy, which has to ack.
    ///
    /// Errors: of the tools, or no ack.
    pub fn enroll(&self, pod: &Pod, rules: &Rules) -> Result<Answer> {
        rules.install(pod)?;
        self.agent.add(&Entry::of(pod)?)?.acked()
    }

    /// What it does with a pod that leaves the mesh and goes on: rules first, then all proxies.
    ///
    /// Errors: of the tools, or no answer.
    pub fn release(&self, pod: &Pod, rules: &Rules) -> Result<()> {
        rules.remove(pod)?;
        for answer in self.agent.del(&pod.uid)? {
            answer.acked()?;
        }
        Ok(())
    }
}

/// The node with the variables for the agent's socket and its rules, in place of those for a file and own capture.
#[must_use]
pub fn settings(node: &Node) -> Node {
    let mut node = node.clone();
    let socket = socket(&node).to_string_lossy().into_owned();
    let variables = [
        ("ENROLL", "zds"),
        ("CAPTURE", "external"),
        ("INPOD_UDS", &socket),
        ("ENROLL_FILE", ""),
        ("CAPTURE_CGROUP", ""),
        ("CAPTURE_PIN_PATH", ""),
        ("CAPTURE_EXEMPT_SOURCES", ""),
    ];
    for (key, value) in variables {
        node.env.push((key.to_owned(), value.to_owned()));
    }
    node
}

/// Where the agent of a node listens.
pub fn socket(node: &Node) -> PathBuf {
    node.dir.join(format!("{}-cni.sock", node.name))
}
