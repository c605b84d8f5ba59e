//! What a container of an image runs: the image's configuration, and what the caller wants
//! otherwise.

use std::io;
use std::path::{Component, Path};

use oci_spec::image::{Config, ImageConfiguration};

use crate::error::ImageError;
use crate::root::Root;
use crate::spec::Settings;
use crate::users::User;

/// Where programs are, when the image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The first process of the container.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Process {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) user: User,
}

impl Process {
    /// Decides on it. The working directory is made in `root` if it is missing.
    pub(crate) fn choose(
        image: &ImageConfiguration,
        settings: &Settings,
        root: &Root,
    ) -> Result<Self, ImageError> {
        let default = Config::default();
        let config = image.config().as_ref().unwrap_or(&default);
        let name = settings.user.as_ref().or(config.user().as_ref());
        let user = User::find(root, name.map_or("", String::as_str))?;
        Ok(Self {
            args: args(config, settings)?,
            env: env(config, settings, &user),
            cwd: working_directory(config, settings, root)?,
            user,
        })
    }
}

/// The image's entrypoint, and what follows it. Another entrypoint does not know the image's
/// arguments.
fn args(config: &Config, settings: &Settings) -> Result<Vec<String>, ImageError> {
    let entrypoint = settings
        .entrypoint
        .as_ref()
        .or(config.entrypoint().as_ref());
    let mut args = entrypoint.cloned().unwrap_or_default();
    if !settings.command.is_empty() {
        args.extend_from_slice(&settings.command);
    } else if settings.entrypoint.is_none() {
        args.extend(config.cmd().clone().unwrap_or_default());
    }
    if args.is_empty() {
        return Err(ImageError::invalid(
            "the image",
            "says nothing of what to run; give a command after its name",
        ));
    }
    Ok(args)
}

/// The image's variables and the caller's, which count more.
fn env(config: &Config, settings: &Settings, user: &User) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let defaults = [
        Some(format!("PATH={DEFAULT_PATH}")),
        Some(format!("HOME={}", user.home)),
        settings.terminal.then(|| "TERM=xterm".to_owned()),
    ];
    let image = config.env().iter().flatten().cloned();
    let all = defaults.into_iter().flatten().chain(image);
    for variable in all.chain(settings.env.iter().cloned()) {
        let Some((name, _)) = variable.split_once('=') else {
            continue;
        };
        let same = |other: &String| other.split_once('=').is_some_and(|(key, _)| key == name);
        match env.iter().position(same) {
            Some(place) => env[place] = variable,
            None => env.push(variable),
        }
    }
    env
}

fn working_directory(
    config: &Config,
    settings: &Settings,
    root: &Root,
) -> Result<String, ImageError> {
    let wanted = settings.workdir.as_ref().or(config.working_dir().as_ref());
    let wanted = wanted.filter(|path| !path.is_empty());
    let path = wanted.map_or("/", String::as_str);
    let refused = |reason: &str| ImageError::invalid(format!("working directory {path:?}"), reason);
    let relative = Path::new(path)
        .strip_prefix("/")
        .map_err(|_| refused("must be an absolute path"))?;
    if relative
        .components()
        .any(|part| part == Component::ParentDir)
    {
        return Err(refused("must not contain `..`"));
    }
    root.make_dirs(relative)
        .map_err(|error| refused(&io::Error::from(error).to_string()))?;
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn config(json: &str) -> Config {
        serde_json::from_str(json).unwrap()
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn a_command_takes_the_place_of_the_image_s_and_not_of_its_entrypoint() {
        let image = config(r#"{"Entrypoint": ["e"], "Cmd": ["c", "d"]}"#);
        let args = |image: &Config, command: &[&str], entrypoint: Option<&[&str]>| {
            let settings = Settings {
                command: strings(command),
                entrypoint: entrypoint.map(strings),
                ..Settings::default()
            };
            args(image, &settings)
        };
        assert_eq!(args(&image, &[], None).unwrap(), ["e", "c", "d"]);
        assert_eq!(args(&image, &["x"], None).unwrap(), ["e", "x"]);
        assert_eq!(args(&image, &[], Some(&["y"])).unwrap(), ["y"]);
        assert_eq!(args(&image, &["x"], Some(&[])).unwrap(), ["x"]);
        let empty = config(r#"{"Entrypoint": null, "Cmd": null}"#);
        assert_eq!(args(&empty, &["x"], None).unwrap(), ["x"]);
        let error = args(&empty, &[], None).unwrap_err().to_string();
        assert!(error.contains("give a command"), "{error}");
    }

    #[test]
    fn each_variable_is_there_once() {
        let image = config(r#"{"Env": ["A=1", "B=2", "PATH=/bin", "nonsense"]}"#);
        let settings = Settings {
            env: strings(&["B=3=4", "C="]),
            ..Settings::default()
        };
        let user = User {
            uid: 0,
            gid: 0,
            additional_gids: vec![],
            home: "/root".into(),
        };
        assert_eq!(
            env(&image, &settings, &user),
            ["PATH=/bin", "HOME=/root", "A=1", "B=3=4", "C="]
        );
    }

    #[test]
    fn the_working_directory_is_made_inside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        symlink("..", dir.path().join("root/up")).unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        let image = config(r#"{"WorkingDir": "/up/work/here"}"#);
        let made = working_directory(&image, &Settings::default(), &root);
        assert_eq!(made.unwrap(), "/up/work/here");
        assert!(dir.path().join("root/work/here").is_dir());
        for path in ["relative", "/a/../../b"] {
            let settings = Settings {
                workdir: Some(path.into()),
                ..Settings::default()
            };
            assert!(
                working_directory(&image, &settings, &root).is_err(),
                "{path}"
            );
        }
    }
}
