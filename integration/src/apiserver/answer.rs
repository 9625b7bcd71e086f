//! Requests and their answers: who asks, may they, what do they get.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::reply::{self, Cut, Reply};
use super::route::Ask;
use super::select::Selector;
use super::status::Failure;
use super::store::{Kind, Object, text};
use super::view::View;
use super::watching::{self, Watch};
use super::{How, Shared, events, patch, record, rules};

/// Largest body that is read.
const BODY_MAX: usize = 3 << 20;
/// Lists cut in pieces of which the rest is kept.
const REST_MAX: usize = 64;

/// One request, taken apart.
struct Call {
    method: Method,
    path: String,
    headers: HeaderMap,
    ask: Option<Ask>,
    body: Result<Bytes, Failure>,
}

impl Call {
    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The content type without parameters.
    fn media(&self) -> &str {
        self.header("content-type")
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
    }
}

/// Answers one request and records it.
///
/// Errors: the connection is to be cut instead.
pub async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Cut> {
    let at = Instant::now();
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    let body = Limited::new(body, BODY_MAX).collect().await;
    let call = Call {
        ask: Ask::read(&head.method, head.uri.path(), query),
        path: head.uri.path().to_owned(),
        body: body
            .map(|all| all.to_bytes())
            .map_err(|_| Failure::too_large()),
        method: head.method,
        headers: head.headers,
    };
    let fault = shared.fault(call.ask.as_ref());
    let told = |status| {
        let body = call.body.as_ref().ok();
        let body = body.and_then(|body| serde_json::from_slice(body).ok());
        shared.record.add(record::Request {
            at,
            line: format!(
                "{} {}{}{query}",
                call.method,
                call.path,
                if query.is_empty() { "" } else { "?" }
            ),
            ask: call.ask.clone(),
            agent: call.header("user-agent").to_owned(),
            accept: call.header("accept").to_owned(),
            content_type: call.header("content-type").to_owned(),
            body: body.unwrap_or(Value::Null),
            status,
        });
    };
    match fault {
        Some(How::Hang) => {
            told(0);
            std::future::pending::<()>().await;
        }
        Some(How::Drop) => {
            told(0);
            return Err(Cut);
        }
        Some(How::Status(code, retry_after)) => {
            told(code);
            return Ok(reply::failure(&Failure::of_code(code, retry_after)));
        }
        None => (),
    }
    if let Some(kind) = call.ask.as_ref().and_then(|ask| ask.kind().ok())
        && call.method == Method::GET
    {
        shared.open(kind).await;
    }
    let answer = act(&shared, &call).unwrap_or_else(|failure| reply::failure(&failure));
    told(answer.status().as_u16());
    Ok(answer)
}

fn act(shared: &Arc<Shared>, call: &Call) -> Result<Response<Reply>, Failure> {
    let token = call.header("authorization").strip_prefix("Bearer ");
    let known = token.is_some_and(|token| shared.settings().tokens.iter().any(|one| one == token));
    if !known {
        return Err(Failure::unauthorized());
    }
    let Some(ask) = &call.ask else {
        return Ok(other(&call.path));
    };
    if ask.group == "authorization.k8s.io" && ask.resource == "selfsubjectaccessreviews" {
        return review(shared, call);
    }
    rules::check(&shared.settings().rules, ask)?;
    let kind = ask.kind()?;
    let namespaced = ask.namespace.is_some() || !kind.namespaced();
    match (ask.verb.as_str(), &ask.name) {
        ("list", _) => list(shared, ask, kind, View::of(call.header("accept"))?),
        ("watch", _) => {
            let begin = Watch::read(shared, ask, kind, View::of(call.header("accept"))?)?;
            Ok(reply::stream(watching::begin(Arc::clone(shared), begin)))
        }
        ("get", Some(name)) if namespaced => {
            let view = View::of(call.header("accept"))?;
            let found = find(shared, kind, ask, name)?;
            Ok(reply::json(200, &view.object(&shown(ask, kind, &found))))
        }
        ("patch", Some(name)) if namespaced => change(shared, call, ask, kind, name),
        ("create", None) if namespaced && kind == Kind::Events => create(shared, call, ask),
        _ => Err(Failure::not_allowed()),
    }
}

/// What every authenticated client may see.
fn other(path: &str) -> Response<Reply> {
    match path {
        "/version" => reply::json(
            200,
            &json!({"major": "1", "minor": "33", "gitVersion": "v1.33.1", "platform": "linux/amd64"}),
        ),
        "/healthz" | "/livez" | "/readyz" => reply::plain(200, "ok"),
        _ => reply::plain(404, "404 page not found\n"),
    }
}

/// An object in the form of the group it was asked for in.
fn shown(ask: &Ask, kind: Kind, object: &Value) -> Value {
    if kind == Kind::Events && ask.group == events::GROUP {
        events::to_new(object)
    } else {
        object.clone()
    }
}

fn find(shared: &Shared, kind: Kind, ask: &Ask, name: &str) -> Result<Object, Failure> {
    let namespace = ask.namespace.as_deref().unwrap_or_default();
    let content = shared.store.lock();
    let found = content.get(kind, namespace, name).cloned();
    found.ok_or_else(|| Failure::not_found(kind.resource(), name))
}

fn list(shared: &Shared, ask: &Ask, kind: Kind, view: View) -> Result<Response<Reply>, Failure> {
    let selector = Selector::parse(kind, ask.param("labelSelector"), ask.param("fieldSelector"))?;
    let limit = ask.param("limit").parse().ok().filter(|&limit| limit > 0);
    let (version, mut items) = if ask.param("continue").is_empty() {
        let asked = watching::version(ask.param("resourceVersion"))?;
        let content = shared.store.lock();
        let now = content.version();
        if asked > now {
            return Err(Failure::version_too_large(asked, now));
        }
        if ask.param("resourceVersionMatch") == "Exact" && asked != now {
            return Err(Failure::expired(
                "The resourceVersion for the provided list is too old.",
            ));
        }
        let mine = |one: &&Object| {
            let namespace = &one["metadata"]["namespace"];
            let inside = ask
                .namespace
                .as_ref()
                .is_none_or(|wanted| namespace == wanted.as_str());
            inside && selector.takes(one)
        };
        let items: Vec<_> = content.list(kind).filter(mine).cloned().collect();
        (now, items)
    } else {
        let rest = shared.settings().rest.remove(ask.param("continue"));
        rest.ok_or_else(|| {
            Failure::expired(
                "The provided continue parameter is too old to display a consistent list result. \
                 You can start a new list without the continue parameter.",
            )
        })?
    };
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some(limit) = limit
        && items.len() > limit
    {
        let rest = items.split_off(limit);
        let mut settings = shared.settings();
        settings.pages += 1;
        let token = format!("page-{}-{version}", settings.pages);
        metadata["continue"] = json!(token);
        metadata["remainingItemCount"] = json!(rest.len());
        settings.rest.insert(token, (version, rest));
        while settings.rest.len() > REST_MAX {
            settings.rest.pop_first();
        }
    }
    Ok(reply::json(200, &view.list(kind, metadata, &items)))
}

fn change(
    shared: &Shared,
    call: &Call,
    ask: &Ask,
    kind: Kind,
    name: &str,
) -> Result<Response<Reply>, Failure> {
    let body = call.body.as_ref().map_err(Clone::clone)?;
    shared.store.change(|content| {
        let namespace = ask.namespace.as_deref().unwrap_or_default();
        let old = content
            .get(kind, namespace, name)
            .cloned()
            .ok_or_else(|| Failure::not_found(kind.resource(), name))?;
        let new = patch::apply(call.media(), &shown(ask, kind, &old), body)?;
        let new = if kind == Kind::Events {
            events::to_core(&new)
        } else {
            new
        };
        let new = patch::admit(kind, ask, &old, new)?;
        let dry = ask.param("dryRun") == "All";
        let stored = if dry {
            Arc::new(new)
        } else {
            content.put(kind, new)
        };
        Ok(reply::json(200, &shown(ask, kind, &stored)))
    })
}

fn create(shared: &Shared, call: &Call, ask: &Ask) -> Result<Response<Reply>, Failure> {
    const MEDIA: [&str; 1] = ["application/json"];
    let body = call.body.as_ref().map_err(Clone::clone)?;
    if !MEDIA.contains(&call.media()) {
        return Err(Failure::media_type(&MEDIA));
    }
    let given: Value = serde_json::from_slice(body).map_err(|why| {
        Failure::bad_request(format!("Event in version \"v1\" cannot be handled: {why}"))
    })?;
    let newer = ask.group == events::GROUP;
    let version = if newer { "events.k8s.io/v1" } else { "v1" };
    let stated = |key: &str, right: &str| given.get(key).is_none_or(|value| value == right);
    if !given.is_object() || !stated("kind", "Event") || !stated("apiVersion", version) {
        return Err(Failure::bad_request(
            "the API version in the data does not match the expected API version",
        ));
    }
    let namespace = ask.namespace.as_deref().unwrap_or_default();
    shared.store.change(|content| {
        let home = content.get(Kind::Namespaces, "", namespace);
        let home = home.ok_or_else(|| Failure::not_found("namespaces", namespace))?;
        if home["status"]["phase"] == "Terminating" {
            let why = format!(
                "events is forbidden: unable to create new content in namespace {namespace} because it is being terminated"
            );
            return Err(Failure::forbidden(why));
        }
        let core = if newer { events::to_core(&given) } else { given.clone() };
        let mut core = events::admit(core, namespace, newer, content.version())?;
        core["kind"] = json!("Event");
        core["apiVersion"] = json!("v1");
        let name = text(&core["metadata"]["name"]);
        if content.get(Kind::Events, namespace, name).is_some() {
            return Err(Failure::exists("events", name));
        }
        let stored = content.put(Kind::Events, core);
        Ok(reply::json(201, &shown(ask, Kind::Events, &stored)))
    })
}

/// What a client may do, asked by itself.
fn review(shared: &Shared, call: &Call) -> Result<Response<Reply>, Failure> {
    let body = call.body.as_ref().map_err(Clone::clone)?;
    let mut review: Value =
        serde_json::from_slice(body).map_err(|why| Failure::bad_request(why.to_string()))?;
    let asked = &review["spec"]["resourceAttributes"];
    let resource = match text(&asked["subresource"]) {
        "" => text(&asked["resource"]).to_owned(),
        sub => format!("{}/{sub}", text(&asked["resource"])),
    };
    let (verb, group) = (text(&asked["verb"]), text(&asked["group"]));
    let allowed = rules::allowed(&shared.settings().rules, verb, group, &resource);
    review["status"] = json!({"allowed": allowed});
    Ok(reply::json(201, &review))
}
