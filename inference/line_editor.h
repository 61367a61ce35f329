// Lines that somebody types at a terminal: edited, and with the earlier ones at hand, by libedit where the build had it; else as the
// terminal edits them. Ctrl-C gives a line up, and stops a text that is being generated; it does not end the program.
#pragma once
#include <langinfo.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cwchar>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#ifdef HAVE_LIBEDIT
#include <histedit.h>
#else
struct EditLine;
#endif

namespace tapernorm::infer {

// Whether Ctrl-C was pressed since this was last set to 0; the signal that is to end the program, once there was one.
inline volatile sig_atomic_t interrupted = 0, ended_by = 0;

class LineEditor {
  public:
    explicit LineEditor(const char* prompt) : prompt_(prompt) {
        struct sigaction action{};
        action.sa_handler = [](int signal) {
            if (signal == SIGINT) interrupted = 1;
        };
        action.sa_flags = SA_RESTART;  // of what is printed; poll comes back all the same
        for (const int signal : {SIGINT, SIGCONT, SIGWINCH}) sigaction(signal, &action, nullptr);
#ifdef HAVE_LIBEDIT
        // Characters of more than one byte: in any other encoding libedit would leave them out.
        if (!std::setlocale(LC_CTYPE, "") || std::string_view(nl_langinfo(CODESET)) != "UTF-8")
            std::setlocale(LC_CTYPE, "C.UTF-8");
        history_ = history_init();
        edit_ = el_init("infer", stdin, stdout, stderr);
        if (!edit_ || !history_) return;
        HistEvent event;
        history(history_, &event, H_SETSIZE, 1000);
        history(history_, &event, H_SETUNIQUE, 1);
        el_set(edit_, EL_CLIENTDATA, this);
        el_set(edit_, EL_PROMPT, static_cast<const char* (*)(EditLine*)>(prompt_of));
        el_set(edit_, EL_HIST, history, history_);
        el_set(edit_, EL_EDITOR, "emacs");
        el_set(edit_, EL_GETCFN, static_cast<int (*)(EditLine*, wchar_t*)>(read_character));
        el_source(edit_, nullptr);  // ~/.editrc, the user's own keys
#endif
    }
    LineEditor(const LineEditor&) = delete;
    LineEditor& operator=(const LineEditor&) = delete;
#ifdef HAVE_LIBEDIT
    ~LineEditor() {
        if (edit_) el_end(edit_);
        if (history_) history_end(history_);
    }
#endif

    // The next line that is not given up, without its line feed; none at the end (Ctrl-D).
    std::optional<std::string> next() {
        for (;;) {
            interrupted = 0;
            std::optional<std::string> line = read_or_end();
            if (!interrupted) return line;
            std::printf("\n");
        }
    }

  private:
    // A byte, once there is one; false at the end and at Ctrl-C.
    static bool read_byte(char& byte, [[maybe_unused]] EditLine* edit) {
        for (;;) {
            struct pollfd input = {STDIN_FILENO, POLLIN, 0};
            if (interrupted || ended_by) return false;
            if (poll(&input, 1, -1) >= 0) return ::read(STDIN_FILENO, &byte, 1) == 1;
            if (errno != EINTR) return false;
#ifdef HAVE_LIBEDIT
            if (!edit || interrupted || ended_by) continue;
            // The terminal has another size, or the program was stopped and comes back to a terminal that the shell has set.
            el_set(edit, EL_PREP_TERM, 0), el_set(edit, EL_PREP_TERM, 1);
            el_resize(edit);
            el_set(edit, EL_REFRESH);
#endif
        }
    }

    // A line is read with the terminal in a mode of libedit's own, which signals that end the program must not leave behind.
    std::optional<std::string> read_or_end() {
        constexpr int kEnds[] = {SIGTERM, SIGHUP, SIGQUIT};
        struct sigaction action{}, before[std::size(kEnds)];
        action.sa_handler = [](int signal) { ended_by = signal; };
        for (size_t i = 0; i < std::size(kEnds); i++) {
            sigaction(kEnds[i], nullptr, &before[i]);
            if (before[i].sa_handler != SIG_IGN) sigaction(kEnds[i], &action, nullptr);
        }
        std::optional<std::string> line = read();
        for (size_t i = 0; i < std::size(kEnds); i++) sigaction(kEnds[i], &before[i], nullptr);
        if (ended_by) std::printf("\n"), std::fflush(stdout), raise(ended_by);
        return line;
    }

    std::optional<std::string> read() {
#ifdef HAVE_LIBEDIT
        if (edit_) {
            int bytes = 0;
            const char* typed = el_gets(edit_, &bytes);
            if (!typed || bytes <= 0) return {};
            std::string line(typed, size_t(bytes));
            while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
            HistEvent event;
            if (!line.empty()) history(history_, &event, H_ENTER, line.c_str());
            return line;
        }
#endif
        std::printf("%s", prompt_);
        std::fflush(stdout);
        std::string line;
        for (char byte; read_byte(byte, nullptr); line += byte)
            if (byte == '\n') return line;
        return line.empty() ? std::nullopt : std::optional(line);
    }

    const char* prompt_;
#ifdef HAVE_LIBEDIT
    static const char* prompt_of(EditLine* edit) {
        LineEditor* self = nullptr;
        el_get(edit, EL_CLIENTDATA, &self);
        return self->prompt_;
    }

    // libedit's own reader goes on after a signal.
    static int read_character(EditLine* edit, wchar_t* character) {
        std::mbstate_t state{};
        for (char byte; read_byte(byte, edit);) {
            if (byte == '\0') {  // Ctrl-D, typed while the terminal was still, or again, in the mode of the shell
                const LineInfo* line = el_line(edit);
                if (line->lastchar > line->buffer) continue;  // Ctrl-Space
                byte = '\x04';
            }
            const size_t length = std::mbrtowc(character, &byte, 1, &state);
            if (length == size_t(-2)) continue;  // the rest of it is to come
            if (length != size_t(-1)) return 1;
            state = {};  // no character: it is left out
        }
        return interrupted ? -1 : 0;
    }

    EditLine* edit_ = nullptr;
    History* history_ = nullptr;
#endif
};

}  // namespace tapernorm::infer
