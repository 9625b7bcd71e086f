//! The proxy configuration and its metadata: the mesh file's `defaultConfig`, then `PROXY_CONFIG`, then `ISTIO_META_*`.
//!
//! Later sources win key by key. What the keys mean is left to the files that read them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::value::{Env, Invalid};

/// The mesh configuration, from the working directory.
const MESH_FILE: &str = "etc/istio/config/mesh";
/// Largest text of a proxy configuration that is read. Istio's whole mesh configuration is a few KiB.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Most YAML nodes in it, and how deep they may nest.
const NODES_MAX: usize = 50_000;
const DEPTH_MAX: usize = 64;
/// Characters of an offending value that an error repeats.
const SHOWN_CHARS_MAX: usize = 60;

/// Prefix of metadata keys in the environment; stripped from keys of `proxyMetadata` as well.
const METADATA: &str = "ISTIO_META_";
/// Prefix of variables whose values are JSON.
const METADATA_JSON: &str = "ISTIO_METAJSON_";

/// What the proxy configuration says, none where it is silent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyConfig {
    /// control plane, when `XDS_ADDRESS` is not set
    pub discovery_address: Option<String>,
    /// admin port
    #[serde(deserialize_with = "port")]
    pub proxy_admin_port: Option<u16>,
    /// metrics port
    #[serde(deserialize_with = "port")]
    pub stats_port: Option<u16>,
    /// data threads; 0 = all cores
    #[serde(deserialize_with = "count")]
    pub concurrency: Option<u16>,
    /// metadata without the `ISTIO_META_` prefix
    #[serde(deserialize_with = "metadata")]
    pub proxy_metadata: BTreeMap<String, String>,
}

/// The mesh configuration as far as it matters here.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MeshConfig {
    default_config: Option<ProxyConfig>,
}

fn port<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    number(from, "a port number")
}

fn count<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    number(from, "a whole number")
}

/// A number, plain or quoted.
fn number<'de, D: serde::Deserializer<'de>>(from: D, what: &str) -> Result<Option<u16>, D::Error> {
    let value = Value::deserialize(from)?;
    let found = match &value {
        Value::Null => return Ok(None),
        Value::Number(number) => number.as_u64().and_then(|number| number.try_into().ok()),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let wrong = || {
        let shown: String = value.to_string().chars().take(SHOWN_CHARS_MAX).collect();
        serde::de::Error::custom(format!("{shown}, expected {what} from 0 to {}", u16::MAX))
    };
    found.map(Some).ok_or_else(wrong)
}

/// Values may be written as text, numbers or switches: they are text to everyone.
fn metadata<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let map = Option::<BTreeMap<String, Value>>::deserialize(from)?;
    let text = |(key, value): (String, Value)| {
        let value = match value {
            Value::String(text) => text,
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            _ => {
                return Err(serde::de::Error::custom(format!(
                    "{key}: expected text, a number or a switch"
                )));
            }
        };
        let key = key
            .strip_prefix(METADATA)
            .map_or(key.clone(), str::to_owned);
        Ok((key, value))
    };
    map.into_iter().flatten().map(text).collect()
}

impl ProxyConfig {
    /// Reads and merges all sources.
    ///
    /// Errors: a text that cannot be parsed, with the key, the value and what was expected there.
    pub fn read(env: &Env<'_>) -> Result<Self, Invalid> {
        let mut all = mesh_file(&env.path(MESH_FILE))?;
        if let Some(text) = env.optional("PROXY_CONFIG") {
            let own: Option<Self> =
                parse(&text).map_err(|problem| Invalid::text("PROXY_CONFIG", problem))?;
            all.overlay(own.unwrap_or_default());
        }
        let variables = env.prefixed(METADATA);
        all.proxy_metadata
            .extend(variables.map(|(key, value)| (key.to_owned(), value.to_owned())));
        Ok(all)
    }

    fn overlay(&mut self, later: Self) {
        let Self {
            discovery_address,
            proxy_admin_port,
            stats_port,
            concurrency,
            proxy_metadata,
        } = later;
        self.discovery_address = discovery_address.or(self.discovery_address.take());
        self.proxy_admin_port = proxy_admin_port.or(self.proxy_admin_port);
        self.stats_port = stats_port.or(self.stats_port);
        self.concurrency = concurrency.or(self.concurrency);
        self.proxy_metadata.extend(proxy_metadata);
    }

    /// The metadata that a variable of this name, such as `ISTIO_META_DNS_CAPTURE`, sets.
    pub fn metadata(&self, variable: &str) -> Option<&str> {
        let key = variable.strip_prefix(METADATA).unwrap_or(variable);
        self.proxy_metadata.get(key).map(String::as_str)
    }
}

/// Node metadata of `ISTIO_METAJSON_*`, and what to warn of: values that are no JSON are skipped.
pub fn json_metadata(env: &Env<'_>) -> (BTreeMap<String, Value>, Vec<String>) {
    let (mut metadata, mut warnings) = (BTreeMap::new(), Vec::new());
    for (key, value) in env.prefixed(METADATA_JSON) {
        match serde_json::from_str(value) {
            Ok(value) => drop(metadata.insert(key.to_owned(), value)),
            Err(error) => warnings.push(format!(
                "{METADATA_JSON}{key} is skipped, it is not JSON: {error}"
            )),
        }
    }
    (metadata, warnings)
}

fn mesh_file(path: &Path) -> Result<ProxyConfig, Invalid> {
    let refused = |problem: String| Invalid::text(path.display().to_string(), problem);
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(ProxyConfig::default());
        }
        Err(error) => return Err(refused(error.to_string())),
    };
    let mesh: Option<MeshConfig> = parse(&text).map_err(refused)?;
    Ok(mesh
        .and_then(|mesh| mesh.default_config)
        .unwrap_or_default())
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!(
            "{} bytes, expected at most {TEXT_BYTES_MAX}",
            text.len()
        ));
    }
    let options = serde_saphyr::options! {
        with_snippet: false,
        emit_comments: false,
        budget: serde_saphyr::budget! {
            max_events: 2 * NODES_MAX,
            max_nodes: NODES_MAX,
            max_depth: DEPTH_MAX,
            max_documents: 1,
            max_total_scalar_bytes: TEXT_BYTES_MAX,
        },
    };
    let mut key = String::new();
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, |yaml| {
        serde_path_to_error::deserialize(yaml).map_err(|error| {
            key = error.path().to_string();
            error.into_inner()
        })
    });
    read.map_err(
        |error: serde_saphyr::Error| match key.trim_end_matches(".?") {
            "" | "." | "?" => error.to_string(),
            key => format!("{key}: {error}"),
        },
    )
}
