//! The `tracing` layer: events and spans in, finished lines out.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::filter::known_as;
use super::line::{Fields, clean, push, push_clean, push_json, stamp};
use super::writer::Item;
use super::{Format, Shared};

/// Events with these targets never carry spans.
const WITHOUT_SPANS: [&str; 2] = [crate::access::TARGET, "dns"];
/// Own crates are shown without this prefix in plain lines.
const OWN_PREFIX: &str = "ztunnel::";

/// Formats events and hands them to the writer.
pub(super) struct LogLayer {
    shared: Arc<Shared>,
}

/// The fields of one span, formatted once when they are recorded.
struct SpanFields(String);

impl LogLayer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn lets_through(&self, metadata: &Metadata<'_>) -> bool {
        self.shared.filter().level_of(metadata.target()) >= *metadata.level()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.lets_through(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.lets_through(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.shared.filter().level_max())
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut text = String::new();
        attributes.record(&mut FieldVisitor(Fields::new(
            self.shared.format,
            &mut text,
            false,
        )));
        span.extensions_mut().insert(SpanFields(text));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        if let Some(SpanFields(text)) = extensions.get_mut::<SpanFields>() {
            let separate = !text.is_empty();
            values.record(&mut FieldVisitor(Fields::new(
                self.shared.format,
                text,
                separate,
            )));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = String::with_capacity(256);
        let spans = spans_of(event, &context);
        let head = Head {
            at: SystemTime::now(),
            level: *event.metadata().level(),
            target: event.metadata().target(),
        };
        match self.shared.format {
            Format::Plain => plain(&mut line, &head, event, &spans),
            Format::Json => json(&mut line, &head, event, &spans),
        }
        self.shared.queue.push(Item::Line(line));
    }
}

/// What every line begins with.
struct Head<'a> {
    at: SystemTime,
    level: Level,
    target: &'a str,
}

/// Name and formatted fields of each active span, outermost first.
fn spans_of<S: Subscriber + for<'a> LookupSpan<'a>>(
    event: &Event<'_>,
    context: &Context<'_, S>,
) -> Vec<(&'static str, String)> {
    if WITHOUT_SPANS.contains(&event.metadata().target()) {
        return Vec::new();
    }
    let Some(scope) = context.event_scope(event) else {
        return Vec::new();
    };
    let fields = |span: tracing_subscriber::registry::SpanRef<'_, S>| {
        let text = span
            .extensions()
            .get::<SpanFields>()
            .map(|fields| fields.0.clone())
            .unwrap_or_default();
        (span.name(), text)
    };
    scope.from_root().map(fields).collect()
}

fn plain(line: &mut String, head: &Head<'_>, event: &Event<'_>, spans: &[(&'static str, String)]) {
    let (known, rest) = known_as(head.target);
    stamp(line, head.at);
    push(
        line,
        format_args!(
            "\t{}\t{}{rest}",
            level_name(head.level),
            known.strip_prefix(OWN_PREFIX).unwrap_or(known)
        ),
    );
    for (name, fields) in spans {
        push(line, format_args!(":{name}{{{fields}}}"));
    }
    line.push('\t');
    let mut message = Message::default();
    event.record(&mut message);
    if let Some(text) = message.0 {
        push_clean(line, format_args!("{text}"));
        line.push('\t');
    }
    event.record(&mut FieldVisitor(Fields::new(Format::Plain, line, false)));
    line.push('\n');
}

fn json(line: &mut String, head: &Head<'_>, event: &Event<'_>, spans: &[(&'static str, String)]) {
    let (known, rest) = known_as(head.target);
    push(
        line,
        format_args!("{{\"level\":\"{}\",\"time\":\"", level_name(head.level)),
    );
    stamp(line, head.at);
    line.push_str("\",\"scope\":");
    push_json(line, &format!("{known}{rest}"));
    let mut message = Message::default();
    event.record(&mut message);
    if let Some(text) = message.0 {
        line.push_str(",\"message\":");
        push_json(line, &text);
    }
    event.record(&mut FieldVisitor(Fields::new(Format::Json, line, true)));
    for (at, (name, fields)) in spans.iter().enumerate() {
        // A key stands once: of two spans of one name the inner one is shown.
        if spans[at + 1..].iter().all(|(inner, _)| inner != name) {
            line.push(',');
            push_json(line, name);
            push(line, format_args!(":{{{fields}}}"));
        }
    }
    line.push_str("}\n");
}

/// The lower-case word of a level.
pub(crate) fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

const MESSAGE: &str = "message";

/// Finds the message of an event.
#[derive(Default)]
struct Message(Option<String>);

impl Visit for Message {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == MESSAGE {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

/// Writes every field but the message.
struct FieldVisitor<'a>(Fields<'a>);

impl FieldVisitor<'_> {
    fn native(&mut self, field: &Field, value: std::fmt::Arguments<'_>) {
        if field.name() != MESSAGE {
            self.0.native(field.name(), value);
        }
    }
}

impl Visit for FieldVisitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != MESSAGE {
            self.0.string(field.name(), value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        if field.name() != MESSAGE {
            self.0.string(field.name(), &chain(value));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.native(field, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.native(field, format_args!("{value}"));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.native(field, format_args!("{value}"));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.native(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.native(field, format_args!("{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.native(field, format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() != MESSAGE {
            self.0.display(field.name(), format_args!("{value:?}"));
        }
    }
}

/// An error with its causes, joined by `: `.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    /// Most causes shown.
    const CAUSES_MAX: usize = 8;
    let mut text = clean(&error.to_string());
    let mut cause = error.source();
    for _ in 0..CAUSES_MAX {
        let Some(error) = cause else { break };
        push_clean(&mut text, format_args!(": {error}"));
        cause = error.source();
    }
    text
}
