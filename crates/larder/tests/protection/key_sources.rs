//! Prevents: keys that others can read, keys that are none, and messages that show them.

use larder::ErrorKind;
use larder::envelope::{KeySource, Keyring, KeyringBuilder, SecretKey};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

const ONE: &str = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20";
const TWO: &str = "2122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f40";

#[test]
fn a_file_an_environment_and_a_callback_give_the_same_keys() {
    let text = format!("# the current one\n{ONE}\n{TWO} # until May\nnames:{}\n", TWO.replace('2', "a"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::write(&path, &text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let from_file = KeySource::File(path).load().unwrap();
    assert_eq!(from_file.ids(), [ONE, TWO].map(|hex| SecretKey::from_hex(hex).unwrap().id()));
    assert_eq!(from_file.current(), super::secret(1).id());
    assert!(from_file.hides_names());
    let ask = Arc::new(move || Ok(text.clone().into()));
    assert_eq!(KeySource::Callback(ask).load().unwrap().ids(), from_file.ids());
    let parsed = KeyringBuilder::parse(&format!("{ONE},{TWO}")).unwrap().build().unwrap();
    assert_eq!(parsed.ids(), from_file.ids());
    let missing = KeySource::Env("LARDER_NO_SUCH_VARIABLE".into()).load().unwrap_err();
    assert!(missing.to_string().contains("LARDER_NO_SUCH_VARIABLE"), "{missing}");
}

#[test]
fn a_file_that_others_can_read_is_refused_with_the_cure() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::write(&path, ONE).unwrap();
    for mode in [0o644, 0o604, 0o660, 0o666, 0o601] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let refused = KeySource::File(path.clone()).load().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Config);
        assert!(refused.to_string().contains("chmod 600"), "{refused}");
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    KeySource::File(path).load().unwrap();
    let folder = KeySource::File(folder.path().to_owned()).load().unwrap_err();
    assert!(folder.to_string().contains("is no file"), "{folder}");
}

#[test]
fn what_is_no_key_is_refused_without_being_shown() {
    let wrong =
        ["", "hunter2-the-passphrase", &ONE[1..], &format!("{ONE}00"), &"0".repeat(64), &"é".repeat(32)];
    for text in wrong {
        let refused = KeyringBuilder::parse(text).and_then(KeyringBuilder::build).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Config);
        let shown = format!("{refused} {refused:?}");
        assert!(text.is_empty() || !shown.contains(text), "{shown}");
    }
    let twice = KeyringBuilder::parse(&format!("{ONE} {ONE}")).unwrap().build().unwrap_err();
    assert!(twice.to_string().contains("twice"), "{twice}");
    let many = (0..17).fold(Keyring::builder().encrypt_with(super::secret(99)), |builder, at| {
        builder.decrypt_with(super::secret(at))
    });
    assert!(many.build().is_err());
}

#[test]
fn generated_keys_differ_and_survive_their_text() {
    let (one, two) = (SecretKey::generate(), SecretKey::generate());
    assert_ne!(one, two);
    assert_eq!(SecretKey::from_hex(&one.to_hex()).unwrap(), one);
    assert_ne!(one.id(), two.id());
}
