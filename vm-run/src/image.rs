//! `vm-run image`: a container of an image, from its name to its exit status.
//!
//! The image becomes a bundle in a directory of this run, and that is run like any other.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use nacre_image::cache::{Cache, DEFAULT_DIR};
use nacre_image::overlay::{Overlay, make_upper};
use nacre_image::progress::Progress;
use nacre_image::run_dir::RunDir;
use nacre_image::signature::PublicKey;
use nacre_image::{
    ImageError, ImageReference, Options, Prepared, Pull, Settings, prepare, specification,
    stop_signal,
};
use nacre_pod::timing::Moment;

use crate::bundle;
use crate::cli::PodArgs;
use crate::launch::RunError;
use crate::logger;
use crate::signals::StopSignal;

/// Host name of a container without a name.
const HOSTNAME: &str = "nacre";

#[derive(Args, Debug)]
pub(crate) struct ImageArgs {
    /// The image: in a registry, such as `debian:13`; or by a path with a slash, or after
    /// `oci:`, `oci-archive:` or `docker-archive:`, an OCI image layout (a directory or tar)
    /// or an archive of `docker save`, with `:NAME` where it has several images
    #[arg(value_name = "REF")]
    reference: ImageReference,

    /// Command and arguments, in place of the image's Cmd
    #[arg(
        value_name = "CMD",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,

    /// Set a variable, or take over that of the caller; may be repeated
    #[arg(long, short, value_name = "NAME[=VALUE]", value_parser = variable)]
    env: Vec<Variable>,

    /// Working directory, in place of the image's
    #[arg(long, short, value_name = "PATH")]
    workdir: Option<String>,

    /// User, and group, in place of the image's: names or numbers
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,

    /// Program, or a JSON array of a program and its first arguments, in place of the image's
    /// Entrypoint and Cmd; none when empty
    #[arg(long, value_name = "PROGRAM", value_parser = entrypoint)]
    entrypoint: Option<Entrypoint>,

    /// Give the container a terminal, if standard input is one
    #[arg(long, short)]
    tty: bool,

    /// When to ask the registry
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = PullArg::Missing)]
    pull: PullArg,

    /// Run the image only if its registry has a signature of it (cosign's simple signing) by
    /// the ECDSA P-256 key in FILE
    #[arg(long, value_name = "FILE")]
    verify_key: Option<PathBuf>,

    /// Where unpacked layers are kept
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    cache: PathBuf,

    /// Say nothing of pulling and unpacking
    #[arg(long, short)]
    quiet: bool,

    #[command(flatten)]
    pub(crate) pod: PodArgs,
}

/// Of `--entrypoint`.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Entrypoint(Vec<String>);

/// Of `--env`: without a value where it is the caller's.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Variable {
    name: String,
    value: Option<String>,
}

/// Of `--pull`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PullArg {
    /// The image must be in the cache
    Never,
    /// If the image is not in the cache
    Missing,
    /// Each time
    Always,
}

impl From<PullArg> for Pull {
    fn from(when: PullArg) -> Self {
        match when {
            PullArg::Never => Self::Never,
            PullArg::Missing => Self::Missing,
            PullArg::Always => Self::Always,
        }
    }
}

/// Runs a container of an image and says what to exit with.
pub(crate) fn run(args: &ImageArgs, request: Moment) -> Result<u8, RunError> {
    // Before anything that takes time.
    let key = args
        .verify_key
        .as_deref()
        .map(PublicKey::read)
        .transpose()?;
    let options = Options {
        pull: args.pull.into(),
        key,
    };
    let cache = Cache::open(&args.cache)?;
    let run = cache.new_run()?;
    let bundle = run.make_dir("bundle")?;
    let mut overlay = None;
    let status = bundle::run_prepared(&bundle, &args.pod, request, || {
        let image = find(args, &cache, &run, &options)?;
        let mounted = overlay.insert(mount(&run, &image)?);
        write_bundle(args, &image, mounted.root(), &bundle)?;
        give_memory_back();
        Ok(StopSignal::new(stop_signal(&image.config)?))
    });
    // Before the run's directory.
    drop(overlay);
    status
}

fn find(
    args: &ImageArgs,
    cache: &Cache,
    run: &RunDir,
    options: &Options,
) -> Result<Prepared, ImageError> {
    let progress = if args.quiet {
        Progress::quiet()
    } else {
        Progress::to_stderr(logger::say)
    };
    prepare(&args.reference, cache, run, options, &progress)
}

/// Puts a directory of this run above the image's layers, for what the container writes.
fn mount(run: &RunDir, image: &Prepared) -> Result<Overlay, RunError> {
    let upper = make_upper(run, "upper", &image.layers)?;
    Ok(Overlay::mount(run, &image.layers, &upper)?)
}

/// What a pull has used, this process does not need while the container runs.
fn give_memory_back() {
    // SAFETY: it touches nothing but memory that is free.
    unsafe { libc::malloc_trim(0) };
}

fn write_bundle(
    args: &ImageArgs,
    image: &Prepared,
    root: &Path,
    bundle: &Path,
) -> Result<(), RunError> {
    let spec = specification(&image.config, &args.settings(), root)?;
    let text = serde_json::to_vec(&spec).map_err(io::Error::from)?;
    Ok(fs::write(bundle.join("config.json"), text)?)
}

impl ImageArgs {
    fn settings(&self) -> Settings {
        let hostname = self.pod.id.as_deref().unwrap_or(HOSTNAME);
        Settings {
            command: self.command.clone(),
            entrypoint: self.entrypoint.clone().map(|Entrypoint(words)| words),
            env: variables(&self.env, |name| env::var(name).ok()),
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            terminal: self.tty && io::stdin().is_terminal(),
            hostname: hostname.to_owned(),
        }
    }
}

/// Variables with their values; of the caller's, those that there are.
fn variables(given: &[Variable], of_caller: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut all = BTreeMap::new();
    for Variable { name, value } in given {
        if let Some(value) = value.clone().or_else(|| of_caller(name)) {
            all.insert(name, value);
        }
    }
    let text = |(name, value)| format!("{name}={value}");
    all.into_iter().map(text).collect()
}

fn variable(text: &str) -> Result<Variable, &'static str> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err("must have a name");
    }
    Ok(Variable {
        name: name.into(),
        value,
    })
}

fn entrypoint(text: &str) -> Result<Entrypoint, String> {
    let words = match text {
        "" => Vec::new(),
        text if text.starts_with('[') => {
            serde_json::from_str(text).map_err(|error| format!("not an array of words: {error}"))?
        }
        program => vec![program.to_owned()],
    };
    Ok(Entrypoint(words))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(args: &[&str]) -> Result<ImageArgs, clap::Error> {
        let args = ["vm-run", "image"].iter().chain(args);
        match Cli::try_parse_from(args)?.command {
            Command::Image(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_follows_the_name_is_the_container_s() {
        let args = parse(&[
            "--memory=1G",
            "-p=1:2",
            "debian:13",
            "ls",
            "-l",
            "--",
            "--cpus=x",
        ]);
        let args = args.unwrap();
        assert_eq!(args.reference.to_string(), "docker.io/library/debian:13");
        assert_eq!(args.command, ["ls", "-l", "--", "--cpus=x"]);
        assert_eq!(args.pod.memory.unwrap().0, 1024);
        for args in [
            ["--cpus=0", "debian"],
            ["--pull=often", "a"],
            ["--env==x", "a"],
            ["--entrypoint=[1", "a"],
            ["--quiet", "http://a/b"],
        ] {
            assert!(parse(&args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn an_entrypoint_is_a_word_or_an_array() {
        let words = |text| entrypoint(text).map(|Entrypoint(words)| words);
        assert_eq!(words("/bin/a b").unwrap(), ["/bin/a b"]);
        assert_eq!(words(r#"["a", "b c"]"#).unwrap(), ["a", "b c"]);
        assert!(words("").unwrap().is_empty());
    }

    #[test]
    fn variables_have_the_value_given_or_the_caller_s() {
        let given: Vec<_> = ["A=1", "B", "C", "A=2=3", "D="]
            .map(|text| variable(text).unwrap())
            .into();
        let of_caller = |name: &str| (name == "B").then(|| "b".to_owned());
        assert_eq!(variables(&given, of_caller), ["A=2=3", "B=b", "D="]);
    }
}
