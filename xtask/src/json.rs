//! Reads the JSON that `zg --json` prints: enough of RFC 8259 for the demo, so that xtask needs no package.

/// One JSON value. Object members keep their order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Value>),
    Object(Vec<(String, Value)>),
}

impl Value {
    /// Reads a text that is one value; the error says what stood where.
    pub(crate) fn parse(text: &str) -> Result<Value, String> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value()?;
        reader.skip_space();
        if reader.at == text.len() { Ok(value) } else { Err(reader.unexpected("the end")) }
    }

    /// The member of an object; `Null` for what is not there, as `zg` leaves nothing else out.
    pub(crate) fn at(&self, name: &str) -> &Value {
        const ABSENT: &Value = &Value::Null;
        let Value::Object(members) = self else { return ABSENT };
        members.iter().find(|(member, _)| member == name).map_or(ABSENT, |(_, value)| value)
    }

    pub(crate) fn list(&self) -> &[Value] {
        if let Value::List(values) = self { values } else { &[] }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }

    pub(crate) fn number(&self) -> Option<f64> {
        if let Value::Number(number) = self { Some(*number) } else { None }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn value(&mut self) -> Result<Value, String> {
        self.skip_space();
        let rest = &self.text[self.at..];
        for (word, value) in [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))] {
            if rest.starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        match rest.chars().next() {
            Some('"') => Ok(Value::Text(self.string()?)),
            Some('[') => Ok(Value::List(self.items(']', Reader::value)?)),
            Some('{') => Ok(Value::Object(self.items('}', |reader| {
                reader.skip_space();
                let name = reader.string()?;
                reader.take(':')?;
                Ok((name, reader.value()?))
            })?)),
            _ => {
                let end = rest.find(|c: char| !c.is_ascii_digit() && !"+-.eE".contains(c)).unwrap_or(rest.len());
                let number = rest[..end].parse().map_err(|_| self.unexpected("a value"))?;
                self.at += end;
                Ok(Value::Number(number))
            }
        }
    }

    /// What stands between the bracket here and `close`, with commas between.
    fn items<T>(&mut self, close: char, item: impl Fn(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        self.at += 1;
        let mut items = Vec::new();
        if self.take(close).is_ok() {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.take(',').is_err() {
                self.take(close)?;
                return Ok(items);
            }
        }
    }

    fn string(&mut self) -> Result<String, String> {
        self.take('"')?;
        let mut units = Vec::new();
        loop {
            let character = self.text[self.at..].chars().next().ok_or_else(|| self.unexpected("a quote"))?;
            self.at += character.len_utf8();
            match character {
                '"' => return String::from_utf16(&units).map_err(|_| self.unexpected("whole characters")),
                '\\' => units.push(self.escaped()?),
                _ => units.extend_from_slice(character.encode_utf16(&mut [0; 2])),
            }
        }
    }

    /// The UTF-16 unit that the escape after a backslash stands for.
    fn escaped(&mut self) -> Result<u16, String> {
        let character = self.text[self.at..].chars().next().ok_or_else(|| self.unexpected("an escape"))?;
        self.at += character.len_utf8();
        let ascii = match character {
            '"' | '\\' | '/' => character,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let digits = self.text.get(self.at..self.at + 4).ok_or_else(|| self.unexpected("four digits"))?;
                let unit = u16::from_str_radix(digits, 16).map_err(|_| self.unexpected("four digits"))?;
                self.at += 4;
                return Ok(unit);
            }
            _ => return Err(self.unexpected("an escape")),
        };
        Ok(ascii as u16)
    }

    fn take(&mut self, wanted: char) -> Result<(), String> {
        self.skip_space();
        if !self.text[self.at..].starts_with(wanted) {
            return Err(self.unexpected(&wanted.to_string()));
        }
        self.at += wanted.len_utf8();
        Ok(())
    }

    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn unexpected(&self, wanted: &str) -> String {
        let found: String = self.text[self.at..].chars().take(20).collect();
        format!("JSON: expected {wanted} at byte {}, found `{found}`", self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_zg_prints_is_read() {
        let text = "{\"schema_version\":1, \"chunks\":[{\"chunk\":1,\"cause\":null,\"cpu_us\":1.5e3,\"ok\":true},{}], \"e\":[]}\n";
        let value = Value::parse(text).unwrap();
        assert_eq!(value.at("chunks").list()[0].at("cpu_us").number(), Some(1500.0));
        assert_eq!(value.at("chunks").list()[0].at("cause"), &Value::Null);
        assert_eq!(value.at("chunks").list().len(), 2);
        assert_eq!(value.at("e").list(), []);
        assert_eq!(value.at("absent").text(), None);
    }

    #[test]
    fn escapes_stand_for_their_characters() {
        let value = Value::parse(r#""a\"\\\n\u00e4 ä \ud83d\ude00""#).unwrap();
        assert_eq!(value.text(), Some("a\"\\\nä ä 😀"));
    }

    #[test]
    fn what_is_not_one_value_is_refused_with_its_place() {
        for text in ["", "{", "[1,]", "{\"a\" 1}", "\"a", "1 2", "\"\\x\"", "\"\\u12\"", "nul", "\"\\ud800\""] {
            let error = Value::parse(text).unwrap_err();
            assert!(error.starts_with("JSON: expected "), "{text}: {error}");
        }
    }
}
