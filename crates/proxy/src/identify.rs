//! Second step of every path: whose connection it is.

use std::sync::Arc;
use std::time::Duration;

use mesh::Workload;

use crate::Shared;
use crate::failure::Failure;
use crate::pod::Pod;

/// How long a connection waits for its pod to appear in the mesh state (spec: routing §13).
const WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// The pod's own workload in the mesh state.
///
/// Errors: it did not appear within 5 s.
pub(crate) async fn local_workload(shared: &Shared, pod: &Pod) -> Result<Arc<Workload>, Failure> {
    let find = |index: &mesh::Index| {
        index
            .local_workload(&pod.namespace, &pod.name, &pod.service_account)
            .cloned()
    };
    if let Some(workload) = find(&shared.state()) {
        return Ok(workload);
    }
    let mut index = shared.index.clone();
    let appeared = index.wait_for(|index| find(index).is_some());
    let found = match tokio::time::timeout(WORKLOAD_WAIT, appeared).await {
        Ok(Ok(index)) => find(&index),
        Ok(Err(_)) | Err(_) => None,
    };
    found.ok_or_else(|| {
        Failure::LocalWorkload(format!(
            "workload is unknown: {}.{} ({})",
            pod.service_account, pod.namespace, pod.name
        ))
    })
}
