//! The `options` start-up parameter: a command line in miniature.
//!
//! Words are split on white space, a backslash takes the next byte literally (`pg_split_opts`, `postinit.c`). Settings are
//! `-c name=value`, `-cname=value` and `--name=value`, where `-` in a name means `_` (`ParseLongOption`, `guc.c`). A bare
//! `name=value` means nothing to Postgres: it is ours, for clients whose drivers offer no other place.

use bytes::Bytes;

/// The words of an `options` parameter, in order; what is not touched goes out as it came in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    items: Vec<Item>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Item {
    /// The words as sent, escapes included.
    raw: Vec<u8>,
    /// Name and value; `None` for a word that is no setting.
    setting: Option<(String, String)>,
}

impl Options {
    /// Never fails: what is not understood is kept for the server to judge.
    pub fn parse(text: &[u8]) -> Options {
        let mut words = split(text).into_iter();
        let mut items = Vec::new();
        while let Some(mut word) = words.next() {
            if word.value == b"-c"
                && let Some(setting) = words.next()
            {
                word.raw.push(b' ');
                word.raw.extend_from_slice(&setting.raw);
                items.push(Item { raw: word.raw, setting: assignment(&setting.value) });
                continue;
            }
            let setting = setting_of(&word.value);
            items.push(Item { raw: word.raw, setting });
        }
        Options { items }
    }

    /// The value of a setting; the last one counts.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.settings().filter(|(found, _)| *found == name).last().map(|(_, value)| value)
    }

    /// Every setting in order, as (name, value).
    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.items
            .iter()
            .filter_map(|item| item.setting.as_ref().map(|(n, v)| (n.as_str(), v.as_str())))
    }

    /// Removes every setting of this name and returns their values.
    pub fn take(&mut self, name: &str) -> Vec<String> {
        let mut taken = Vec::new();
        self.items.retain_mut(|item| match item.setting.take_if(|(found, _)| found == name) {
            Some((_, value)) => {
                taken.push(value);
                false
            }
            None => true,
        });
        taken
    }

    /// True when no word is left.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The parameter value to send on.
    pub fn to_bytes(&self) -> Bytes {
        let raw: Vec<&[u8]> = self.items.iter().map(|item| item.raw.as_slice()).collect();
        Bytes::from(raw.join(&b' '))
    }
}

struct Word {
    raw: Vec<u8>,
    value: Vec<u8>,
}

fn split(text: &[u8]) -> Vec<Word> {
    let mut words = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    loop {
        while bytes.next_if(u8::is_ascii_whitespace).is_some() {}
        if bytes.peek().is_none() {
            return words;
        }
        let mut word = Word { raw: Vec::new(), value: Vec::new() };
        while let Some(byte) = bytes.next_if(|byte| !byte.is_ascii_whitespace()) {
            word.raw.push(byte);
            match byte {
                b'\\' => {
                    let Some(literal) = bytes.next() else { break };
                    word.raw.push(literal);
                    word.value.push(literal);
                }
                plain => word.value.push(plain),
            }
        }
        words.push(word);
    }
}

fn setting_of(word: &[u8]) -> Option<(String, String)> {
    match word.strip_prefix(b"--").or_else(|| word.strip_prefix(b"-c")) {
        Some(rest) => assignment(rest),
        None if word.starts_with(b"-") => None,
        None => assignment(word),
    }
}

fn assignment(word: &[u8]) -> Option<(String, String)> {
    let (name, value) = std::str::from_utf8(word).ok()?.split_once('=')?;
    (!name.is_empty()).then(|| (name.replace('-', "_"), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_spelling() {
        let options = Options::parse(br"-c a.b=1  --work-mem=64MB -cx=y\ z bare=v -B 5 -c");
        let settings: Vec<_> = options.settings().collect();
        assert_eq!(settings, [("a.b", "1"), ("work_mem", "64MB"), ("x", "y z"), ("bare", "v")]);
        assert_eq!(&options.to_bytes()[..], br"-c a.b=1 --work-mem=64MB -cx=y\ z bare=v -B 5 -c");
    }

    #[test]
    fn taking_leaves_the_rest() {
        let mut options = Options::parse(br"branch=dev -c a=b\ c -c branch=x");
        assert_eq!(options.get("branch"), Some("x"));
        assert_eq!(options.take("branch"), ["dev", "x"]);
        assert_eq!(&options.to_bytes()[..], br"-c a=b\ c");
        assert!(!options.is_empty());
        assert!(Options::parse(b"  ").is_empty());
    }

    proptest! {
        #[test]
        fn rewriting_keeps_the_meaning(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let once = Options::parse(&bytes);
            // A lone backslash at the end of a word that is not the last cannot occur: it would have
            // taken the blank after it.
            prop_assert_eq!(&Options::parse(&once.to_bytes()), &once);
        }
    }
}
