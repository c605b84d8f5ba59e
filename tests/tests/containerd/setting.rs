//! Where a test takes place: which containerd, which runtime.

use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Conclusion, Trial};
use nacre_tests::containerd::Version;
use nacre_tests::{Clean, Containerd, Runtime, count};

use Runtime::{Nacre, NacreSandbox, Runc};
use Version::{One, Two};

/// What a test is given.
pub(crate) struct Setting<'a> {
    pub(crate) containerd: &'a Containerd,
    pub(crate) runtime: Runtime,
}

/// A test and where it is to run.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) places: &'static [(Version, Runtime)],
    pub(crate) check: fn(&mut Setting),
}

/// For what depends on the version of containerd. That runc does the same is shown once.
pub(crate) const EVERYWHERE: &[(Version, Runtime)] = &[(One, Runc), (One, Nacre), (Two, Nacre)];

/// For what a shim does in the same way whoever asks.
pub(crate) const ONE_VERSION: &[(Version, Runtime)] = &[(One, Runc), (One, Nacre)];

/// For pods.
pub(crate) const PODS: &[(Version, Runtime)] =
    &[(One, Runc), (One, Nacre), (Two, Nacre), (Two, NacreSandbox)];

/// For pods, where what makes the pod counts, and not containerd's version.
pub(crate) const POD_KINDS: &[(Version, Runtime)] =
    &[(One, Runc), (One, Nacre), (Two, NacreSandbox)];

/// For what runc has no part in, such as a monitor, or does not promise.
pub(crate) const NACRE: &[(Version, Runtime)] = &[(One, Nacre), (Two, Nacre)];

/// The same where containerd's version does not count.
pub(crate) const NACRE_ONCE: &[(Version, Runtime)] = &[(One, Nacre)];

/// The same for pods: what makes the pod counts.
pub(crate) const NACRE_PODS: &[(Version, Runtime)] = &[(One, Nacre), (Two, NacreSandbox)];

/// That runc does what a test asks of Nacre need not be shown at each change.
fn is_due(runtime: Runtime) -> bool {
    runtime != Runc || count(false, true)
}

/// Runs tests, those of one place together.
pub(crate) fn run(arguments: &Arguments, tests: &[Test]) -> Conclusion {
    let places: [(Version, Runtime); 4] = PODS.try_into().expect("all there are");
    let stage = Arc::new(Stage::default());
    let trials = places
        .into_iter()
        .flat_map(|place| tests.iter().map(move |test| (place, *test)))
        .filter(|(place, test)| test.places.contains(place) && is_due(place.1))
        .map(|(place, test)| {
            let stage = stage.clone();
            let name = format!("{}::{}::{}", place.0, place.1, test.name);
            Trial::test(name, move || {
                stage.play(place, test);
                Ok(())
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(arguments, trials);
    stage.clear();
    conclusion
}

/// The containerd of the tests that run.
#[derive(Default)]
struct Stage(Mutex<Option<Containerd>>);

impl Stage {
    fn play(&self, (version, runtime): (Version, Runtime), test: Test) {
        let mut stage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stage
            .as_ref()
            .is_none_or(|there| there.version() != version)
        {
            *stage = None;
            *stage = Some(Containerd::start(version));
        }
        let containerd = stage.as_ref().expect("just made");
        let clean = Clean::slate_and(containerd.kept());
        let tidy = Tidy(containerd);
        (test.check)(&mut Setting {
            containerd: tidy.0,
            runtime,
        });
        drop(tidy);
        drop(clean);
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Sees to it that a test that failed leaves nothing to the next one.
struct Tidy<'a>(&'a Containerd);

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.remove_everything();
        }
    }
}
