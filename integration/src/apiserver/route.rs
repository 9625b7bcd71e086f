//! What a request asks for, read from its method, path and query.

use std::collections::BTreeMap;

use http::Method;

use super::status::Failure;
use super::store::Kind;

/// One request for a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// `get`, `list`, `watch`, `create`, `patch`, `update`, `delete`, `deletecollection`
    pub verb: String,
    /// API group, empty for the core's
    pub group: String,
    /// version of the group
    pub version: String,
    /// resource, as in the path
    pub resource: String,
    /// sub-resource, as in the path
    pub subresource: Option<String>,
    /// namespace, if the path has one
    pub namespace: Option<String>,
    /// name, if the path has one
    pub name: Option<String>,
    /// query
    pub query: BTreeMap<String, String>,
}

impl Ask {
    /// Reads a request; none if its path is not one of a resource.
    pub fn read(method: &Method, path: &str, query: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/');
        let (group, version) = match parts.next()? {
            "api" => (String::new(), parts.next()?),
            "apis" => (parts.next()?.to_owned(), parts.next()?),
            _ => return None,
        };
        let rest: Vec<_> = parts.map(str::to_owned).collect();
        let own = |at: usize| rest.get(at).cloned();
        // "namespaces" is a resource and the way to the others
        let inside = rest.first()? == "namespaces"
            && rest.len() >= 3
            && !matches!(rest[2].as_str(), "status" | "finalize");
        let (namespace, at) = if inside { (own(1), 2) } else { (None, 0) };
        let query: BTreeMap<_, _> = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let name = own(at + 1);
        let watch = matches!(query.get("watch").map(String::as_str), Some("true" | "1"));
        let verb = match (method, &name) {
            (&Method::GET, _) if watch => "watch",
            (&Method::GET, Some(_)) => "get",
            (&Method::GET, None) => "list",
            (&Method::POST, _) => "create",
            (&Method::PATCH, _) => "patch",
            (&Method::PUT, _) => "update",
            (&Method::DELETE, Some(_)) => "delete",
            (&Method::DELETE, None) => "deletecollection",
            _ => "unknown",
        };
        Some(Self {
            verb: verb.to_owned(),
            group,
            version: version.to_owned(),
            resource: own(at)?,
            subresource: own(at + 2),
            namespace,
            name,
            query,
        })
    }

    /// The kind that is asked for.
    ///
    /// Errors: 404, it is not served.
    pub fn kind(&self) -> Result<Kind, Failure> {
        let kind = Kind::of(&self.group, &self.resource).filter(|_| self.version == "v1");
        kind.ok_or_else(Failure::no_such_resource)
    }

    /// Resource and sub-resource as rules name them.
    pub fn full_resource(&self) -> String {
        match &self.subresource {
            Some(sub) => format!("{}/{sub}", self.resource),
            None => self.resource.clone(),
        }
    }

    /// A query parameter, empty if it is absent.
    pub fn param(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    /// Whether a query parameter is true.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.param(name), "true" | "1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_paths() {
        for (method, path, query, expected) in [
            (Method::GET, "/api/v1/pods", "limit=5", "list pods - - -"),
            (
                Method::GET,
                "/api/v1/pods",
                "watch=true",
                "watch pods - - -",
            ),
            (
                Method::GET,
                "/api/v1/namespaces",
                "watch=1",
                "watch namespaces - - -",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/shop",
                "",
                "get namespaces - shop -",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/shop/status",
                "",
                "get namespaces - shop status",
            ),
            (
                Method::PATCH,
                "/api/v1/namespaces/shop/pods/a",
                "",
                "patch pods shop a -",
            ),
            (
                Method::PATCH,
                "/api/v1/namespaces/shop/pods/a/status",
                "",
                "patch pods shop a status",
            ),
            (
                Method::POST,
                "/apis/events.k8s.io/v1/namespaces/shop/events",
                "",
                "create events shop - -",
            ),
        ] {
            let ask = Ask::read(&method, path, query).unwrap();
            let or = |one: Option<String>| one.unwrap_or_else(|| "-".to_owned());
            let told = format!(
                "{} {} {} {} {}",
                ask.verb,
                ask.resource,
                or(ask.namespace),
                or(ask.name),
                or(ask.subresource)
            );
            assert_eq!(told, expected, "{path}");
        }
        assert_eq!(Ask::read(&Method::GET, "/version", ""), None);
    }
}
