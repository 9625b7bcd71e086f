//! How this daemon introduces itself to istiod: node id and metadata.
//!
//! Leaves to others: where the values come from (`ztunnel`), and when they are sent (`xds::subscriber`).

use std::collections::BTreeMap;

use proto::discovery;
use proto::wellknown::{ListValue, NullValue, Struct, Value as Wire, value::Kind};
use serde_json::Value;

/// Prefix that keys of proxy metadata may carry.
const META_PREFIX: &str = "ISTIO_META_";

/// What istiod is told about this daemon. Empty strings stand for "not known".
///
/// Source: istiod's node id, `type~ip~name.namespace~domain`.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Address of this daemon (`INSTANCE_IP`). Default 1.1.1.1: istiod refuses a node without a valid one.
    pub ip: String,
    /// Own pod (`POD_NAME`).
    pub pod: String,
    /// Own namespace (`POD_NAMESPACE`).
    pub namespace: String,
    /// The node this daemon serves (`NODE_NAME`).
    pub node_name: String,
    /// Merged proxy metadata; a leading `ISTIO_META_` of a key is removed.
    pub metadata: BTreeMap<String, String>,
    /// Values of `ISTIO_METAJSON_<key>`, by key. They win over all others.
    pub metadata_json: BTreeMap<String, Value>,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            ip: "1.1.1.1".to_owned(),
            pod: String::new(),
            namespace: String::new(),
            node_name: String::new(),
            metadata: BTreeMap::new(),
            metadata_json: BTreeMap::new(),
        }
    }
}

impl Node {
    /// `ztunnel~<ip>~<pod>.<namespace>~<namespace>.svc.cluster.local`; the suffix is literal whatever the cluster's domain is.
    pub fn id(&self) -> String {
        let Self {
            ip, pod, namespace, ..
        } = self;
        format!("ztunnel~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local")
    }

    /// All metadata; what comes later replaces what came earlier: built in, proxy metadata, JSON.
    pub fn fields(&self) -> BTreeMap<String, Value> {
        let built_in = [
            ("NAME", &self.pod),
            ("NAMESPACE", &self.namespace),
            ("INSTANCE_IPS", &self.ip),
            ("NODE_NAME", &self.node_name),
        ];
        let mut fields: BTreeMap<String, Value> = built_in
            .into_iter()
            .map(|(key, value)| (key.to_owned(), Value::from(value.as_str())))
            .collect();
        for (key, value) in &self.metadata {
            let key = key.strip_prefix(META_PREFIX).unwrap_or(key);
            fields.insert(key.to_owned(), Value::from(value.as_str()));
        }
        fields.extend(self.metadata_json.clone());
        fields
    }

    /// As it is sent.
    pub fn to_proto(&self) -> discovery::Node {
        discovery::Node {
            id: self.id(),
            metadata: Some(Struct {
                fields: self.fields().into_iter().map(field).collect(),
            }),
            ..discovery::Node::default()
        }
    }
}

fn field((key, value): (String, Value)) -> (String, Wire) {
    (key, wire(value))
}

/// Numbers become doubles, as in every protobuf struct.
fn wire(value: Value) -> Wire {
    let kind = match value {
        Value::Null => Kind::NullValue(NullValue::NullValue.into()),
        Value::Bool(yes) => Kind::BoolValue(yes),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => Kind::ListValue(ListValue {
            values: values.into_iter().map(wire).collect(),
        }),
        Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields.into_iter().map(field).collect(),
        }),
    };
    Wire { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn id_has_four_parts_whatever_is_known() {
        assert_eq!(Node::default().id(), "ztunnel~1.1.1.1~.~.svc.cluster.local");
        let node = Node {
            ip: "fd00::1".into(),
            pod: "ztunnel-x".into(),
            namespace: "istio-system".into(),
            ..Node::default()
        };
        assert_eq!(
            node.id(),
            "ztunnel~fd00::1~ztunnel-x.istio-system~istio-system.svc.cluster.local"
        );
    }

    #[test]
    fn later_sources_win() {
        let text = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        let node = Node {
            pod: "zt".into(),
            node_name: "n1".into(),
            metadata: text(&[
                ("ISTIO_META_CLUSTER_ID", "c1"),
                ("NAME", "other"),
                ("X", "1"),
            ]),
            metadata_json: [
                ("X".to_owned(), json!({"a": [1, null, true]})),
                ("N".to_owned(), json!(2.5)),
            ]
            .into(),
            ..Node::default()
        };
        assert_eq!(
            json!(node.fields()),
            json!({
                "NAME": "other", "NAMESPACE": "", "INSTANCE_IPS": "1.1.1.1", "NODE_NAME": "n1",
                "CLUSTER_ID": "c1", "X": {"a": [1, null, true]}, "N": 2.5,
            })
        );
    }

    #[test]
    fn json_becomes_a_struct() {
        let node = Node {
            metadata_json: [(
                "X".to_owned(),
                json!({"list": [1, null, true, "t"], "deep": {"n": -2.5}}),
            )]
            .into(),
            ..Node::default()
        };
        let sent = node.to_proto();
        assert_eq!(sent.id, node.id());
        assert_eq!(
            (sent.cluster.as_str(), sent.build_version.as_str()),
            ("", "")
        );
        let text = format!("{:?}", sent.metadata.unwrap().fields["X"]);
        for part in [
            "NumberValue(1.0), ",
            "NullValue(NullValue)",
            "BoolValue(true)",
            "StringValue(\"t\")",
            "NumberValue(-2.5)",
        ] {
            assert!(
                text.replace(" }", "").contains(part.trim_end_matches(", ")),
                "{part}: {text}"
            );
        }
    }
}
