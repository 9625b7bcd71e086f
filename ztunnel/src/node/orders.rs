//! What istio-cni orders, one after the other; it waits for each answer.

use std::sync::Arc;
use std::time::Duration;

use enroll::PodSpec;
use enroll::zds::Order;
use proxy::Phase;

use super::Node;

impl Node {
    pub(super) async fn carry_out(&mut self, order: Order) {
        match order {
            Order::Start { spec, done } => {
                let started = self.start_ordered(spec).await;
                // who asked may have given up; the pod is served all the same
                let _ = done.send(started.map_err(|error| format!("{error:#}")));
            }
            Order::Stop { uid, done } => {
                self.cut(&uid);
                let _ = done.send(());
            }
        }
        self.settle();
        self.show();
    }

    async fn start_ordered(&mut self, spec: Arc<PodSpec>) -> anyhow::Result<()> {
        let place = spec.netns_handle.as_ref().map(|handle| handle.0.cookie());
        let serving = self.members.get(&spec.uid).and_then(|m| m.serving.as_ref());
        if serving.is_some_and(|serving| Some(serving.cookie) == place) {
            // asked again, as the answer came too late the first time
            return Ok(());
        }
        // another namespace under the same UID: what was there is over, also when the new one cannot be served
        self.cut(&spec.uid);
        let serving = self.open(&spec).await?;
        self.enrolled(&spec, serving, Duration::ZERO);
        Ok(())
    }

    /// Ends a pod's stay at once; its connections are cut.
    fn cut(&mut self, uid: &str) {
        let Some(member) = self.members.remove(uid) else {
            return;
        };
        let spec = &member.spec;
        tracing::info!(pod = %spec.uid, name = %spec.name, namespace = %spec.namespace, "pod un-enrolled");
        if let Some(serving) = member.serving {
            self.parts.metrics.stopped.add(1);
            serving.pod.advance(Phase::Cut);
            self.let_go(spec.uid.clone(), serving, Duration::ZERO);
        }
        self.refresh_identities();
    }
}
