//! Users and groups of an image, by its own files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::ImageError;
use crate::root::Root;

/// Largest `/etc/passwd` or `/etc/group` in bytes; they are held in memory.
const MAX_FILE: u64 = 4 << 20;

/// Groups that a user may be in, as the kernel has it (NGROUPS_MAX).
const MAX_GROUPS: usize = 65536;

/// Largest number of a user or group that means one.
const MAX_ID: u32 = i32::MAX as u32;

/// Who a process is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) additional_gids: Vec<u32>,
    pub(crate) home: String,
}

impl User {
    /// Who `text` is: `USER` or `USER:GROUP`, each a name or a number, in an image with this
    /// root. Nobody is root.
    pub(crate) fn find(root: &Root, text: &str) -> Result<Self, ImageError> {
        let passwd = read(root, "etc/passwd")?;
        let group = read(root, "etc/group")?;
        find(text, &passwd, &group).map_err(|reason| ImageError::invalid("user", reason))
    }
}

fn find(text: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = id(user);
    // A name may be made of digits; it counts before the number.
    let account = accounts(passwd)
        .find(|account| account.name == user)
        .or_else(|| accounts(passwd).find(|account| Some(account.uid) == number));
    let uid = match (&account, number) {
        (Some(account), _) => account.uid,
        (None, Some(number)) => number,
        (None, None) => {
            return Err(format!("the image's /etc/passwd has no user {user:?}"));
        }
    };
    let (gid, additional_gids) = match wanted_group {
        Some(name) => (group_id(name, group)?, Vec::new()),
        None => (
            account.as_ref().map_or(0, |account| account.gid),
            groups_of(account.as_ref().map_or(user, |account| account.name), group),
        ),
    };
    let home = account.map(|account| account.home);
    Ok(User {
        uid,
        gid,
        additional_gids,
        home: home.filter(|home| !home.is_empty()).unwrap_or("/").into(),
    })
}

fn group_id(name: &str, group: &str) -> Result<u32, String> {
    let by_name = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| id(fields.nth(1)?))?
    });
    by_name
        .or_else(|| id(name))
        .ok_or_else(|| format!("the image's /etc/group has no group {name:?}"))
}

/// Groups that list the user as a member.
fn groups_of(user: &str, group: &str) -> Vec<u32> {
    let listed = group.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let gid = id(fields.next()?)?;
        let mut members = fields.next()?.split(',');
        members.any(|member| member == user).then_some(gid)
    });
    listed.take(MAX_GROUPS).collect()
}

/// A line of `/etc/passwd`.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Account {
            name,
            uid,
            gid,
            home,
        })
    })
}

fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id <= MAX_ID)
}

/// Reads a file of the image; one that is not there is empty.
fn read(root: &Root, path: &str) -> Result<String, ImageError> {
    let read = || -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match root.open_at(Path::new(path), OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            place => place?,
        };
        // Looked at before it is opened: the image may have put a device there.
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        if !kind.is_file() {
            return Err(io::Error::other("is not a regular file"));
        }
        let file = File::from(root.open_at(Path::new(path), flags)?);
        let mut text = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX_FILE {
            return Err(io::Error::other("is larger than 4 MiB"));
        }
        Ok(text)
    };
    let text = read().map_err(ImageError::system(format!("the image's /{path}")))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        web:x:101:102::/srv/web:/bin/false\n\
        7:x:1007:1007::/home/seven:\n\
        broken\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlogs:x:200:other,web\nmedia:x:201:web\n";

    fn user(uid: u32, gid: u32, additional_gids: &[u32], home: &str) -> Result<User, String> {
        Ok(User {
            uid,
            gid,
            additional_gids: additional_gids.into(),
            home: home.into(),
        })
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let find = |text| find(text, PASSWD, GROUP);
        assert_eq!(find(""), user(0, 0, &[], "/root"));
        assert_eq!(find("web"), user(101, 102, &[200, 201], "/srv/web"));
        assert_eq!(find("101"), user(101, 102, &[200, 201], "/srv/web"));
        assert_eq!(find("web:logs"), user(101, 200, &[], "/srv/web"));
        assert_eq!(find("web:12"), user(101, 12, &[], "/srv/web"));
        assert_eq!(find(":logs"), user(0, 200, &[], "/root"));
        assert_eq!(find("4242"), user(4242, 0, &[], "/"));
        assert_eq!(find("7"), user(1007, 1007, &[], "/home/seven"));
        for text in ["nobody", "web:nogroup", "-1", "4294967295", "3000000000"] {
            assert!(find(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_files_are_those_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("root/etc");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(dir.path().join("passwd"), "web:x:1:1::/:\n").unwrap();
        symlink("../../passwd", etc.join("passwd")).unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        User::find(&root, "web").unwrap_err();
        assert_eq!(User::find(&root, "5").unwrap().uid, 5);
        std::fs::create_dir(etc.join("group")).unwrap();
        let error = User::find(&root, "5").unwrap_err().to_string();
        assert!(
            error.contains("/etc/group: is not a regular file"),
            "{error}"
        );
    }
}
