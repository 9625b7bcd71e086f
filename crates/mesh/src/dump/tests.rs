//! Tables of cases for the shapes that admin shows.

use super::*;
use crate::local;

const FILE: &str = r#"
workloads:
- uid: c1//Pod/shop/cart-0
  name: cart-0
  namespace: shop
  serviceAccount: cart
  trustDomain: cluster.local
  clusterId: c1
  network: n1
  workloadIps: ["10.1.0.7"]
  protocol: HBONE
  node: node-1
  canonicalName: cart
  workloadName: cart
  workloadType: deployment
  services:
    shop/cart.shop.svc.cluster.local: {80: 8080}
    shop/later: {}
  authorizationPolicies: ["shop/only-web"]
- uid: bare
  namespace: shop
  workloadIps: []
  services: {shop/cart.shop.svc.cluster.local: {}}
  status: Unhealthy
services:
- {name: z, namespace: shop, hostname: z, vips: [], ports: {}}
- name: cart
  namespace: shop
  hostname: cart.shop.svc.cluster.local
  vips: ["n1/10.2.0.4"]
  ports: {80: 8080}
  canonical: true
policies:
- {name: b, namespace: shop, scope: Global, action: Deny, dryRun: true, rules: []}
- name: a
  namespace: shop
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules: [[[{principals: [!Exact "cluster.local/ns/shop/sa/web"]}]]]
"#;

fn text(value: impl Serialize) -> String {
    serde_json::to_string(&value).expect("plain values")
}

#[test]
fn golden() {
    let shown = Snapshot::take(&Index::build(local::parse(FILE).expect("a good file")));
    assert_eq!(
        text(shown.policies()),
        concat!(
            r#"[{"action":"Allow","dryRun":false,"name":"a","namespace":"shop","#,
            r#""rules":[[[{"principals":[{"Exact":"cluster.local/ns/shop/sa/web"}]}]]],"scope":"WorkloadSelector"},"#,
            r#"{"action":"Deny","dryRun":true,"name":"b","namespace":"shop","rules":[],"scope":"Global"}]"#,
        )
    );
    assert_eq!(
        text(shown.services()),
        concat!(
            r#"[{"canonical":true,"endpoints":{"c1//Pod/shop/cart-0":{"port":{"80":8080},"status":"Healthy","#,
            r#""workloadUid":"c1//Pod/shop/cart-0"}},"hostname":"cart.shop.svc.cluster.local","name":"cart","#,
            r#""namespace":"shop","ports":{"80":8080},"subjectAltNames":[],"vips":["n1/10.2.0.4"],"visibility":"Public"},"#,
            r#"{"canonical":false,"endpoints":{},"hostname":"z","name":"z","namespace":"shop","ports":{},"#,
            r#""subjectAltNames":[],"vips":[],"visibility":"Public"}]"#,
        )
    );
    assert_eq!(
        text(shown.staged_services()),
        concat!(
            r#"{"shop/later":{"c1//Pod/shop/cart-0":{"port":{},"status":"Healthy","#,
            r#""workloadUid":"c1//Pod/shop/cart-0"}}}"#,
        )
    );
    assert_eq!(
        text(shown.workloads()),
        concat!(
            r#"[{"capacity":1,"clusterId":"","name":"","namespace":"shop","networkMode":"Standard","protocol":"TCP","#,
            r#""services":["shop/cart.shop.svc.cluster.local"],"status":"Unhealthy","uid":"bare","workloadIps":[]},"#,
            r#"{"authorizationPolicies":["shop/only-web"],"canonicalName":"cart","capacity":1,"clusterId":"c1","#,
            r#""name":"cart-0","namespace":"shop","network":"n1","networkMode":"Standard","node":"node-1","#,
            r#""protocol":"HBONE","serviceAccount":"cart","#,
            r#""services":["shop/cart.shop.svc.cluster.local","shop/later"],"status":"Healthy","#,
            r#""trustDomain":"cluster.local","uid":"c1//Pod/shop/cart-0","workloadIps":["10.1.0.7"],"#,
            r#""workloadName":"cart","workloadType":"deployment"}]"#,
        )
    );
}
