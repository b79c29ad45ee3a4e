//! The events of `tracing` that the whole process tells, for tests that compare them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// An event of `tracing`, with its fields as texts.
#[derive(Clone, Debug)]
pub struct LogEvent {
    /// How important it is.
    pub level: Level,
    /// The thread that told it.
    pub thread: ThreadId,
    /// By their names; the text of the event is `message`.
    pub fields: BTreeMap<String, String>,
}

impl Visit for LogEvent {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name().to_owned(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

/// Events in the order in which they were told. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct LogEvents(Arc<Mutex<Vec<LogEvent>>>);

impl LogEvents {
    /// Keeps the events that `is_kept` names, of the whole process from now on: a subscriber of one thread hears nothing of
    /// an event that another thread has met first.
    ///
    /// # Panics
    /// If the process has a subscriber already.
    pub fn keep(is_kept: fn(&Metadata<'_>) -> bool) -> Self {
        let events = Self::default();
        let subscriber = LogSubscriber { is_kept, events: events.clone() };
        tracing::subscriber::set_global_default(subscriber).expect("no other test of the process sets one");
        events
    }

    /// Those so far that satisfy.
    ///
    /// # Panics
    /// If a thread has panicked while it told one.
    pub fn of(&self, is_meant: impl Fn(&LogEvent) -> bool) -> Vec<LogEvent> {
        self.0
            .lock()
            .expect("nobody panics with it")
            .iter()
            .filter(|event| is_meant(event))
            .cloned()
            .collect()
    }
}

struct LogSubscriber {
    is_kept: fn(&Metadata<'_>) -> bool,
    events: LogEvents,
}

impl Subscriber for LogSubscriber {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && (self.is_kept)(metadata)
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let (level, thread) = (*event.metadata().level(), thread::current().id());
        let mut told = LogEvent { level, thread, fields: BTreeMap::new() };
        event.record(&mut told);
        self.events.0.lock().expect("nobody panics with it").push(told);
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}
