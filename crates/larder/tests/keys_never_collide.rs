//! Prevents: two different keys that share an entry, and one key that has two.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use larder::ErrorKind;
use larder::key::{ENTRY_KEY_BYTES_MAX, EntryKey, KEY_LEVELS_MAX, Namespace, Pattern};
use larder::tenant::Tenant;
use proptest::prelude::*;
use serde::ser::{SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple};
use serde::ser::{SerializeTupleStruct, SerializeTupleVariant, Serializer};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

fn namespace() -> Namespace {
    Namespace::default()
}

fn key<K: Serialize + ?Sized>(key: &K) -> EntryKey {
    EntryKey::new(&namespace(), key).unwrap()
}

/// Everything that serde can say, compared as keys should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    Unit,
    Bool(bool),
    I8(i8),
    I16(i16),
    I32(i32),
    I64(i64),
    I128(i128),
    U8(u8),
    U16(u16),
    U32(u32),
    U64(u64),
    U128(u128),
    F32(u32),
    F64(u64),
    Char(char),
    Str(String),
    Bytes(Vec<u8>),
    None,
    Some(Box<Value>),
    Seq(Vec<Value>),
    Tuple(Vec<Value>),
    Map(BTreeMap<Value, Value>),
    UnitStruct(Name),
    Newtype(Name, Box<Value>),
    TupleStruct(Name, Vec<Value>),
    Struct(Name, Vec<(Name, Value)>),
    UnitVariant(Name, Name),
    NewtypeVariant(Name, Name, Box<Value>),
    TupleVariant(Name, Name, Vec<Value>),
    StructVariant(Name, Name, Vec<(Name, Value)>),
}

type Name = &'static str;

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Unit => s.serialize_unit(),
            Value::Bool(value) => s.serialize_bool(*value),
            Value::I8(value) => s.serialize_i8(*value),
            Value::I16(value) => s.serialize_i16(*value),
            Value::I32(value) => s.serialize_i32(*value),
            Value::I64(value) => s.serialize_i64(*value),
            Value::I128(value) => s.serialize_i128(*value),
            Value::U8(value) => s.serialize_u8(*value),
            Value::U16(value) => s.serialize_u16(*value),
            Value::U32(value) => s.serialize_u32(*value),
            Value::U64(value) => s.serialize_u64(*value),
            Value::U128(value) => s.serialize_u128(*value),
            Value::F32(bits) => s.serialize_f32(f32::from_bits(*bits)),
            Value::F64(bits) => s.serialize_f64(f64::from_bits(*bits)),
            Value::Char(value) => s.serialize_char(*value),
            Value::Str(value) => s.serialize_str(value),
            Value::Bytes(value) => s.serialize_bytes(value),
            Value::None => s.serialize_none(),
            Value::Some(value) => s.serialize_some(value),
            Value::Seq(values) => {
                let mut seq = s.serialize_seq(None)?;
                values.iter().try_for_each(|value| seq.serialize_element(value))?;
                seq.end()
            }
            Value::Tuple(values) => {
                let mut tuple = s.serialize_tuple(values.len())?;
                values.iter().try_for_each(|value| tuple.serialize_element(value))?;
                tuple.end()
            }
            Value::Map(pairs) => {
                let mut map = s.serialize_map(None)?;
                pairs.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
            Value::UnitStruct(name) => s.serialize_unit_struct(name),
            Value::Newtype(name, value) => s.serialize_newtype_struct(name, value),
            Value::TupleStruct(name, values) => {
                let mut tuple = s.serialize_tuple_struct(name, values.len())?;
                values.iter().try_for_each(|value| tuple.serialize_field(value))?;
                tuple.end()
            }
            Value::Struct(name, fields) => {
                let mut fields_out = s.serialize_struct(name, fields.len())?;
                fields.iter().try_for_each(|(name, value)| fields_out.serialize_field(name, value))?;
                fields_out.end()
            }
            Value::UnitVariant(name, variant) => s.serialize_unit_variant(name, 0, variant),
            Value::NewtypeVariant(name, variant, value) => {
                s.serialize_newtype_variant(name, 0, variant, value)
            }
            Value::TupleVariant(name, variant, values) => {
                let mut tuple = s.serialize_tuple_variant(name, 0, variant, values.len())?;
                values.iter().try_for_each(|value| tuple.serialize_field(value))?;
                tuple.end()
            }
            Value::StructVariant(name, variant, fields) => {
                let mut fields_out = s.serialize_struct_variant(name, 0, variant, fields.len())?;
                fields.iter().try_for_each(|(name, value)| fields_out.serialize_field(name, value))?;
                fields_out.end()
            }
        }
    }
}

/// Few different leaves and names, so that values that differ only in their types are common.
fn values() -> impl Strategy<Value = Value> {
    let text = prop_oneof![Just(String::new()), Just("\0".into()), Just("a".into()), "[a\u{5}:é]{0,3}"];
    let leaf = prop_oneof![
        Just(Value::Unit),
        any::<bool>().prop_map(Value::Bool),
        (-1..2i8).prop_map(Value::I8),
        (-1..2i16).prop_map(Value::I16),
        (-1..2i32).prop_map(Value::I32),
        (-1..2i64).prop_map(Value::I64),
        (-1..2i128).prop_map(Value::I128),
        (0..2u8).prop_map(Value::U8),
        (0..2u16).prop_map(Value::U16),
        (0..2u32).prop_map(Value::U32),
        any::<u64>().prop_map(Value::U64),
        (0..2u128).prop_map(Value::U128),
        Just(Value::F32(1f32.to_bits())),
        Just(Value::F64(1f64.to_bits())),
        prop_oneof![Just('a'), Just('\0')].prop_map(Value::Char),
        text.prop_map(Value::Str),
        proptest::collection::vec(0..7u8, 0..3).prop_map(Value::Bytes),
        Just(Value::None),
        names().prop_map(Value::UnitStruct),
        (names(), names()).prop_map(|(name, variant)| Value::UnitVariant(name, variant)),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let some = proptest::collection::vec(inner.clone(), 0..3);
        let fields = proptest::collection::vec((names(), inner.clone()), 0..3);
        let boxed = inner.clone().prop_map(Box::new);
        prop_oneof![
            boxed.clone().prop_map(Value::Some),
            some.clone().prop_map(Value::Seq),
            some.clone().prop_map(Value::Tuple),
            proptest::collection::btree_map(inner.clone(), inner, 0..3).prop_map(Value::Map),
            (names(), boxed.clone()).prop_map(|(name, value)| Value::Newtype(name, value)),
            (names(), some.clone()).prop_map(|(name, values)| Value::TupleStruct(name, values)),
            (names(), fields.clone()).prop_map(|(name, fields)| Value::Struct(name, fields)),
            (names(), names(), boxed)
                .prop_map(|(name, variant, value)| Value::NewtypeVariant(name, variant, value)),
            (names(), names(), some)
                .prop_map(|(name, variant, values)| Value::TupleVariant(name, variant, values)),
            (names(), names(), fields)
                .prop_map(|(name, variant, fields)| Value::StructVariant(name, variant, fields)),
        ]
    })
}

fn names() -> impl Strategy<Value = Name> + Clone {
    proptest::sample::select(&["", "a", "ab"][..])
}

proptest! {
    #[test]
    fn encodings_are_equal_just_when_keys_are(many in proptest::collection::vec(values(), 100)) {
        let mut seen: HashMap<EntryKey, &Value> = HashMap::new();
        for value in &many {
            let key = key(value);
            prop_assert_eq!(&EntryKey::from_bytes(&namespace(), key.as_bytes().clone()).unwrap(), &key);
            let _ = key.text();
            if let Some(same) = seen.insert(key, value) {
                prop_assert_eq!(same, value);
            }
        }
        prop_assert_eq!(seen.len(), many.iter().collect::<std::collections::BTreeSet<_>>().len());
    }

    #[test]
    fn bytes_are_taken_back_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(key) = EntryKey::from_bytes(&namespace(), bytes.clone().into()) {
            let _ = key.text();
            prop_assert_eq!(&key.as_bytes()[..], &bytes[..]);
        }
    }

    #[test]
    fn changed_encodings_are_refused_or_another_key(
        value in values(), at in any::<prop::sample::Index>(), by in 1..=255u8,
    ) {
        let sound = key(&value);
        let mut bytes = sound.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        if let Ok(other) = EntryKey::from_bytes(&namespace(), bytes.into()) {
            let _ = other.text();
            prop_assert_ne!(other, sound);
        }
    }

    #[test]
    fn any_string_is_a_key(text in ".{0,300}") {
        let key = key(&text);
        prop_assert_eq!(key.text(), text.as_str());
        prop_assert_eq!(key.decode_str(), Some(text.as_str()));
    }
}

#[derive(Serialize, Deserialize)]
struct Id(u64);

#[test]
fn one_is_eight_keys() {
    let keys =
        [key(&1u64), key(&1i32), key("1"), key(&(1,)), key(&[1][..]), key(&Some(1)), key(&Id(1)), key(&'1')];
    for (at, one) in keys.iter().enumerate() {
        for other in &keys[at + 1..] {
            assert_ne!(one, other);
            assert_ne!(one.hash64(), other.hash64());
        }
    }
}

#[test]
fn wrappers_that_serde_does_not_see_change_nothing() {
    let plain = key("a");
    for same in
        [key(&"a".to_owned()), key(&Box::new("a")), key(&Arc::new("a")), key(&Cow::Borrowed("a")), key(&&"a")]
    {
        assert_eq!(same, plain);
    }
}

#[test]
fn zeros_and_nans() {
    assert_eq!(key(&0.0f64), key(&-0.0f64));
    assert_eq!(key(&0.0f32), key(&-0.0f32));
    assert_eq!(key(&f64::NAN), key(&-f64::NAN));
    assert_eq!(key(&f32::NAN), key(&f32::from_bits(0x7f80_0001)));
    assert_ne!(key(&0.0f64), key(&0.0f32));
}

#[test]
fn maps_have_no_order_and_lists_do() {
    struct Pairs(&'static [(&'static str, u8)]);
    impl Serialize for Pairs {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(self.0.iter().copied())
        }
    }
    let (forth, back) = (Pairs(&[("a", 1), ("b", 2), ("ccc", 3)]), Pairs(&[("ccc", 3), ("b", 2), ("a", 1)]));
    assert_eq!(key(&forth), key(&back));
    assert_eq!(key(&forth).text(), "a=1:b=2:ccc=3");
    assert_ne!(key(&[1, 2][..]), key(&[2, 1][..]));
    let (first, second) = (Pairs(&[("a", 1), ("a", 2)]), Pairs(&[("a", 2), ("a", 1)]));
    assert_ne!(key(&first), key(&second));
    assert!(EntryKey::from_bytes(&namespace(), key(&first).as_bytes().clone()).is_ok());
}

#[test]
fn texts_for_people() {
    #[derive(Serialize)]
    struct User {
        id: u32,
        lang: Option<&'static str>,
    }
    #[derive(Serialize)]
    enum By {
        All,
        Name(&'static str),
        Page { from: u8, to: u8 },
    }
    for (key, text) in [
        (key(""), ""),
        (key("a:b\n"), "a:b\n"),
        (key(&-7i64), "-7"),
        (key(&1.0f32), "1.0"),
        (key(&1e300f64), "1e300"),
        (key(&true), "true"),
        (key(&'é'), "é"),
        (key(&()), "()"),
        (key(&None::<u8>), "-"),
        (key(&Some("x")), "x"),
        (key(&bytes::Bytes::from_static(b"a\\\0\xff")), "a\\\\\\x00\\xff"),
        (key(&("user", 7, (true, [1u8, 2]))), "user:7:true:1:2"),
        (key(&("a", Vec::<u8>::new(), "b")), "a::b"),
        (key(&User { id: 7, lang: None }), "7:-"),
        (key(&Id(9)), "9"),
        (key(&By::All), "All"),
        (key(&By::Name("x")), "Name:x"),
        (key(&By::Page { from: 1, to: 2 }), "Page:1:2"),
    ] {
        assert_eq!(key.text(), text);
    }
}

#[test]
fn long_keys_keep_the_start_of_their_text() {
    let at_limit = "x".repeat(ENTRY_KEY_BYTES_MAX - 1);
    assert_eq!(key(&at_limit).decode_str(), Some(at_limit.as_str()));

    let long = format!("page:é{}", "x".repeat(1 << 20));
    let (one, other) = (key(&long), key(&format!("{long}y")));
    assert_ne!(one, other);
    assert_ne!(one.text(), other.text());
    assert!(one.as_bytes().len() <= ENTRY_KEY_BYTES_MAX);
    assert_eq!(one.decode_str(), None);
    assert!(one.text().starts_with("page:éxxx") && one.text().contains("…#"), "{}", one.text());
    assert!(Pattern::new("page:*").unwrap().matches(&one.text()));
    assert_eq!(EntryKey::from_bytes(&namespace(), one.as_bytes().clone()).unwrap(), one);

    let list = key(&vec!["ab"; 1000]);
    assert!(list.text().starts_with("ab:ab:ab"), "{}", list.text());
    let mut too_much_text = list.as_bytes().to_vec();
    too_much_text.push(b'x');
    assert_eq!(
        EntryKey::from_bytes(&namespace(), too_much_text.into()).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
}

#[test]
fn nesting_is_bounded_both_ways() {
    let nested = |levels| (0..levels).fold(Value::Unit, |inner, _| Value::Some(Box::new(inner)));
    let deepest = key(&nested(KEY_LEVELS_MAX));
    assert!(EntryKey::from_bytes(&namespace(), deepest.as_bytes().clone()).is_ok());
    let error = EntryKey::new(&namespace(), &nested(KEY_LEVELS_MAX + 1)).unwrap_err();
    assert!(error.kind() == ErrorKind::Key && error.to_string().contains("64 levels"), "{error}");
    let mut deeper = vec![deepest.as_bytes()[0]];
    deeper.extend_from_slice(deepest.as_bytes());
    assert_eq!(EntryKey::from_bytes(&namespace(), deeper.into()).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn namespaces_are_checked_and_separate() {
    for name in ["a", "A-z_0.9:b", &"n".repeat(128)] {
        assert_eq!(Namespace::new(name).unwrap().to_string(), name);
    }
    for name in ["", "a/b", "a b", "é", "a\0", &"n".repeat(129)] {
        let error = Namespace::new(name).unwrap_err();
        assert!(error.kind() == ErrorKind::Key && error.to_string().contains("1 to 128 bytes"), "{error}");
    }
    let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("ab").unwrap());
    let (one, other) = (EntryKey::new(&a, "bc").unwrap(), EntryKey::new(&b, "c").unwrap());
    assert_ne!(one, other);
    assert_ne!(EntryKey::new(&a, "x").unwrap(), EntryKey::new(&b, "x").unwrap());
    assert_ne!(EntryKey::new(&a, "x").unwrap().hash64(), EntryKey::new(&b, "x").unwrap().hash64());
}

/// A namespace's name, its tenant, and a key, of letters that could be mistaken for separators.
fn places() -> impl Strategy<Value = (String, Option<String>, String)> {
    ("[a:.-]{1,3}", proptest::option::of("[a:.-]{1,3}"), "[a:.@~-]{0,3}")
}

fn place((name, tenant, text): &(String, Option<String>, String)) -> EntryKey {
    let name = Namespace::new(name).unwrap();
    let namespace = match tenant {
        Some(tenant) => name.of_tenant(&Tenant::new(tenant).unwrap()),
        None => name,
    };
    EntryKey::new(&namespace, text).unwrap()
}

proptest! {
    #[test]
    fn a_key_is_of_one_namespace_and_one_tenant(a in places(), b in places()) {
        let (one, other) = (place(&a), place(&b));
        prop_assert_eq!(one == other, a == b);
        prop_assert_eq!(one.hash64() == other.hash64(), a == b);
        prop_assert_eq!(one.namespace() == other.namespace(), (&a.0, &a.1) == (&b.0, &b.1));
        // What a store keeps of it leads to the same again.
        let read = Namespace::new(one.namespace().as_str()).unwrap();
        prop_assert_eq!(read.name(), &a.0);
        prop_assert_eq!(read.tenant().map(|tenant| tenant.to_string()), a.1);
        prop_assert_eq!(&read, one.namespace());
    }
}

#[test]
fn a_separator_that_names_may_contain_would_be_found() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let joined = |(name, tenant, _): &(String, Option<String>, String)| {
        tenant.as_ref().map_or(name.clone(), |tenant| format!("{name}:{tenant}"))
    };
    let mut seen = HashMap::new();
    let is_found = (0..10_000).any(|_| {
        let place = places().new_tree(&mut runner).unwrap().current();
        let whose = (place.0.clone(), place.1.clone());
        let earlier = seen.insert(joined(&place), whose.clone());
        earlier.is_some_and(|earlier| earlier != whose)
    });
    assert!(is_found);
}

#[test]
fn tenants_are_names_or_hashes_and_neither_can_pass_for_the_other() {
    let hashed = Tenant::hashed("ada@example.org");
    assert_eq!(hashed, Tenant::hashed("ada@example.org"));
    assert_ne!(hashed, Tenant::hashed("eve@example.org"));
    assert!(!format!("{hashed:?}").contains("ada"));
    for wrong in [hashed.as_str(), "", "a@b", "a/b", "é", "~", &"a".repeat(65)] {
        assert_eq!(Tenant::new(wrong).unwrap_err().kind(), ErrorKind::Key, "{wrong}");
    }
    let longest = Namespace::new(&"n".repeat(128)).unwrap().of_tenant(&hashed);
    assert_eq!(Namespace::new(longest.as_str()).unwrap().tenant(), Some(hashed));
    for wrong in ["@a", "n@", "n@a@b", "n@~", "n@~ab", "n@é"] {
        assert_eq!(Namespace::new(wrong).unwrap_err().kind(), ErrorKind::Key, "{wrong}");
    }
}
