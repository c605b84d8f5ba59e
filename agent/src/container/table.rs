//! Containers, or further processes of one, by their identifiers.
//!
//! The lock is held for a look and never across a wait: what is slow to be made
//! or removed keeps nobody from anything else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::id::Id;
use crate::error::Error;

enum Entry<V> {
    /// Being made or removed by a call that is under way.
    Busy,
    Ready(Arc<V>),
}

/// A bounded number of things by their identifiers.
pub(super) struct Table<V> {
    /// What a message calls the things, before and after their identifier.
    noun: &'static str,
    of: String,
    limit: usize,
    entries: Mutex<HashMap<Id, Entry<V>>>,
}

impl<V> Table<V> {
    /// An empty table; a message says `noun "identifier"of`.
    pub(super) fn new(noun: &'static str, of: String, limit: usize) -> Self {
        Self {
            noun,
            of,
            limit,
            entries: Mutex::new(HashMap::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Entry<V>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, id: &Id) -> String {
        format!("{} {:?}{}", self.noun, id.as_str(), self.of)
    }

    fn busy(&self, id: &Id) -> Error {
        Error::FailedPrecondition(format!("{} is being made or removed", self.name(id)))
    }

    /// The thing with this identifier.
    pub(super) fn get(&self, id: &Id) -> Result<Arc<V>, Error> {
        match self.lock().get(id) {
            Some(Entry::Ready(thing)) => Ok(thing.clone()),
            Some(Entry::Busy) => Err(self.busy(id)),
            None => Err(Error::NotFound(self.name(id))),
        }
    }

    /// Keeps an identifier for a thing that is to be made.
    pub(super) fn reserve(&self, id: &Id) -> Result<Reservation<'_, V>, Error> {
        let mut entries = self.lock();
        if entries.contains_key(id) {
            return Err(Error::AlreadyExists(self.name(id)));
        }
        if entries.len() >= self.limit {
            let message = format!(
                "there are {} of {}{} already",
                self.limit, self.noun, self.of
            );
            return Err(Error::ResourceExhausted(message));
        }
        entries.insert(id.clone(), Entry::Busy);
        Ok(self.reservation(id))
    }

    /// Takes a thing out, unless `check` forbids it; its identifier is kept until
    /// the reservation is dropped.
    pub(super) fn take(
        &self,
        id: &Id,
        check: impl FnOnce(&V) -> Result<(), Error>,
    ) -> Result<(Arc<V>, Reservation<'_, V>), Error> {
        let mut entries = self.lock();
        let entry = entries
            .get_mut(id)
            .ok_or_else(|| Error::NotFound(self.name(id)))?;
        let Entry::Ready(thing) = entry else {
            return Err(self.busy(id));
        };
        check(thing)?;
        let thing = thing.clone();
        *entry = Entry::Busy;
        Ok((thing, self.reservation(id)))
    }

    fn reservation(&self, id: &Id) -> Reservation<'_, V> {
        Reservation {
            table: self,
            id: id.clone(),
            thing: None,
        }
    }

    /// Every thing that is neither being made nor being removed.
    pub(super) fn all(&self) -> Vec<Arc<V>> {
        self.lock()
            .values()
            .filter_map(|entry| match entry {
                Entry::Ready(thing) => Some(thing.clone()),
                Entry::Busy => None,
            })
            .collect()
    }
}

/// An identifier that is taken; dropping it leaves what was put there, or frees
/// the identifier.
pub(super) struct Reservation<'a, V> {
    table: &'a Table<V>,
    id: Id,
    thing: Option<Arc<V>>,
}

impl<V> Reservation<'_, V> {
    /// Puts a thing under the identifier.
    pub(super) fn keep(mut self, thing: Arc<V>) {
        self.thing = Some(thing);
    }
}

impl<V> Drop for Reservation<'_, V> {
    fn drop(&mut self) {
        let mut entries = self.table.lock();
        match self.thing.take() {
            Some(thing) => entries.insert(self.id.clone(), Entry::Ready(thing)),
            None => entries.remove(&self.id),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Id {
        Id::parse(text, "id").unwrap()
    }

    fn table() -> Table<u32> {
        Table::new("container", " of the pod".to_owned(), 2)
    }

    #[test]
    fn an_identifier_is_busy_taken_and_free_again() {
        let table = table();
        let error = table.get(&id("a")).unwrap_err().to_string();
        assert_eq!(error, "container \"a\" of the pod does not exist");
        let reservation = table.reserve(&id("a")).unwrap();
        assert!(matches!(
            table.get(&id("a")),
            Err(Error::FailedPrecondition(_))
        ));
        assert!(matches!(
            table.reserve(&id("a")),
            Err(Error::AlreadyExists(_))
        ));
        reservation.keep(Arc::new(7));
        assert_eq!(*table.get(&id("a")).unwrap(), 7);
        let (_, reservation) = table.take(&id("a"), |_| Ok(())).unwrap();
        assert!(matches!(
            table.get(&id("a")),
            Err(Error::FailedPrecondition(_))
        ));
        drop(reservation);
        assert!(matches!(table.get(&id("a")), Err(Error::NotFound(_))));
    }

    #[test]
    fn what_may_not_be_taken_stays() {
        let table = table();
        table.reserve(&id("a")).unwrap().keep(Arc::new(7));
        let refused = table.take(&id("a"), |_| Err(Error::ShuttingDown));
        assert!(matches!(refused, Err(Error::ShuttingDown)));
        assert_eq!(*table.get(&id("a")).unwrap(), 7);
    }

    #[test]
    fn a_table_is_bounded() {
        let table = table();
        table.reserve(&id("a")).unwrap().keep(Arc::new(1));
        let _being_made = table.reserve(&id("b")).unwrap();
        assert!(matches!(
            table.reserve(&id("c")),
            Err(Error::ResourceExhausted(_))
        ));
        assert_eq!(table.all().len(), 1);
    }
}
