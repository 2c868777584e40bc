// The little JSON that the protocol needs: one value from a line, and one line from values.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace json {

struct Value {
  enum Kind { kNull, kBool, kNumber, kString, kArray, kObject } kind = kNull;
  double number = 0;
  std::string text;  // a string, or a number as it was written
  std::vector<Value> items;
  std::vector<std::pair<std::string, Value>> members;

  const Value* find(const std::string& key) const {
    for (const auto& member : members)
      if (member.first == key) return &member.second;
    return nullptr;
  }
  const Value& at(const std::string& key) const {
    if (const Value* found = find(key)) return *found;
    throw std::runtime_error("the request has no \"" + key + "\"");
  }
  std::string string_or(const std::string& key, const std::string& fallback) const {
    const Value* found = find(key);
    return found && found->kind == kString ? found->text : fallback;
  }
};

class Reader {
 public:
  explicit Reader(const std::string& line) : next_(line.c_str()), end_(next_ + line.size()) {}

  Value read() {
    Value value = any(0);
    space();
    if (next_ != end_) fail();
    return value;
  }

 private:
  static constexpr int kDeepest = 64;

  [[noreturn]] static void fail() { throw std::runtime_error("the request is not valid JSON"); }

  void space() {
    while (next_ < end_ && (*next_ == ' ' || *next_ == '\t' || *next_ == '\r' || *next_ == '\n'))
      ++next_;
  }
  char peek() {
    space();
    if (next_ == end_) fail();
    return *next_;
  }
  bool take(char wanted) {
    if (peek() != wanted) return false;
    ++next_;
    return true;
  }
  void word(const char* text) {
    for (; *text; ++text, ++next_)
      if (next_ == end_ || *next_ != *text) fail();
  }

  Value any(int depth) {
    if (depth > kDeepest) fail();
    Value value;
    switch (peek()) {
      case '{': {
        value.kind = Value::kObject;
        ++next_;
        if (take('}')) break;
        do {
          if (peek() != '"') fail();
          std::string key = string();
          if (!take(':')) fail();
          value.members.emplace_back(std::move(key), any(depth + 1));
        } while (take(','));
        if (!take('}')) fail();
        break;
      }
      case '[':
        value.kind = Value::kArray;
        ++next_;
        if (take(']')) break;
        do value.items.push_back(any(depth + 1));
        while (take(','));
        if (!take(']')) fail();
        break;
      case '"':
        value.kind = Value::kString;
        value.text = string();
        break;
      case 't':
        word("true");
        value.kind = Value::kBool;
        value.number = 1;
        break;
      case 'f':
        word("false");
        value.kind = Value::kBool;
        break;
      case 'n':
        word("null");
        break;
      default: {
        char* stop = nullptr;
        value.kind = Value::kNumber;
        value.number = std::strtod(next_, &stop);
        if (stop == next_) fail();
        value.text = std::string(next_, static_cast<const char*>(stop));
        next_ = stop;
      }
    }
    return value;
  }

  unsigned four_digits() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i, ++next_) {
      if (next_ == end_) fail();
      const char c = *next_;
      code <<= 4;
      if (c >= '0' && c <= '9') code |= c - '0';
      else if (c >= 'a' && c <= 'f') code |= c - 'a' + 10;
      else if (c >= 'A' && c <= 'F') code |= c - 'A' + 10;
      else fail();
    }
    return code;
  }

  void utf8(std::string& out, unsigned code) {
    if (code < 0x80) {
      out += static_cast<char>(code);
    } else if (code < 0x800) {
      out += static_cast<char>(0xC0 | code >> 6);
      out += static_cast<char>(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
      out += static_cast<char>(0xE0 | code >> 12);
      out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
      out += static_cast<char>(0x80 | (code & 0x3F));
    } else {
      out += static_cast<char>(0xF0 | code >> 18);
      out += static_cast<char>(0x80 | (code >> 12 & 0x3F));
      out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
      out += static_cast<char>(0x80 | (code & 0x3F));
    }
  }

  std::string string() {
    std::string out;
    for (++next_; next_ < end_ && *next_ != '"';) {
      if (*next_ != '\\') {
        out += *next_++;
        continue;
      }
      if (++next_ == end_) fail();
      const char escape = *next_++;
      switch (escape) {
        case 'b': out += '\b'; break;
        case 'f': out += '\f'; break;
        case 'n': out += '\n'; break;
        case 'r': out += '\r'; break;
        case 't': out += '\t'; break;
        case 'u': {
          unsigned code = four_digits();
          if (code >= 0xD800 && code < 0xDC00) {
            word("\\u");
            code = 0x10000 + ((code - 0xD800) << 10) + (four_digits() - 0xDC00);
          }
          utf8(out, code);
          break;
        }
        default: out += escape;
      }
    }
    if (next_ == end_) fail();
    ++next_;
    return out;
  }

  const char* next_;
  const char* end_;
};

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", c);
      out += code;
    } else {
      out += c;
    }
  }
  return out + '"';
}

inline std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.12g", value);
  return text;
}

inline std::string number(std::int64_t value) { return std::to_string(value); }

template <typename Items, typename Write>
std::string array(const Items& items, Write write) {
  std::string out = "[";
  for (const auto& item : items) out += (out.size() > 1 ? "," : "") + write(item);
  return out + "]";
}

// Builds one object; values are JSON already.
class Object {
 public:
  Object& raw(const std::string& key, const std::string& value) {
    text_ += (text_.empty() ? "" : ",") + quoted(key) + ":" + value;
    return *this;
  }
  Object& add(const std::string& key, const std::string& value) { return raw(key, quoted(value)); }
  Object& add(const std::string& key, double value) { return raw(key, number(value)); }
  std::string str() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

}  // namespace json
