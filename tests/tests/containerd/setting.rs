//! Where a test takes place: which containerd, which runtime.

use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Conclusion, Trial};
use nacre_tests::containerd::Version;
use nacre_tests::{Clean, Containerd, Runtime};

use Runtime::{Nacre, NacreSandbox, Runc};
use Version::{One, Two};

/// What a test is given.
pub(crate) struct Setting<'a> {
    pub(crate) containerd: &'a mut Containerd,
    pub(crate) runtime: Runtime,
}

/// A test and where it is to run.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) places: &'static [(Version, Runtime)],
    pub(crate) check: fn(&mut Setting),
}

/// For what depends on the version of containerd.
pub(crate) const EVERYWHERE: &[(Version, Runtime)] =
    &[(One, Runc), (One, Nacre), (Two, Runc), (Two, Nacre)];

/// For what a shim does in the same way whoever asks.
pub(crate) const ONE_VERSION: &[(Version, Runtime)] = &[(One, Runc), (One, Nacre)];

/// For pods.
pub(crate) const PODS: &[(Version, Runtime)] = &[
    (One, Runc),
    (One, Nacre),
    (Two, Runc),
    (Two, Nacre),
    (Two, NacreSandbox),
];

/// For what runc has no part in, such as a monitor, or does not promise.
pub(crate) const NACRE: &[(Version, Runtime)] = &[(One, Nacre), (Two, Nacre)];

/// Runs tests, those of one place together.
pub(crate) fn run(arguments: &Arguments, tests: &[Test]) -> Conclusion {
    let places: [(Version, Runtime); 5] = PODS.try_into().expect("all there are");
    let stage = Arc::new(Stage::default());
    let trials = places
        .into_iter()
        .flat_map(|place| tests.iter().map(move |test| (place, *test)))
        .filter(|(place, test)| test.places.contains(place))
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
        let containerd = stage.as_mut().expect("just made");
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
struct Tidy<'a>(&'a mut Containerd);

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.remove_everything();
        }
    }
}
