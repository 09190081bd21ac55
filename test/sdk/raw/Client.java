import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * The JRE's own HTTP client against the route in OPENAI_BASE_URL, run as {@code java Client.java java/chat java/stream}.
 * It prints JSON lines as the other clients do. Java reads neither HTTPS_PROXY nor a CA from the environment: routes only.
 */
public class Client {
    /** The string members whose text is the answer's, the chunk's or the error's. The fields' names differ, so one pattern serves all. */
    private static final Pattern TEXT = Pattern.compile("\"(?:content|message)\"\\s*:\\s*\"((?:[^\"\\\\]|\\\\.)*)\"");

    private static final HttpClient HTTP = HttpClient.newHttpClient();

    public static void main(String[] cases) {
        for (String name : cases) {
            try {
                System.out.println(name.endsWith("/stream") ? stream(name) : chat(name));
            } catch (Exception e) {
                System.out.println(failed(name, e.getClass().getSimpleName(), 0, escape(String.valueOf(e.getMessage()))));
            }
        }
    }

    private static String chat(String name) throws Exception {
        var answer = HTTP.send(request(false), BodyHandlers.ofString());
        String text = text(answer.body());
        if (answer.statusCode() != 200) {
            return failed(name, "HttpResponse", answer.statusCode(), text);
        }
        return "{\"name\":\"%s\",\"ok\":true,\"text\":\"%s\"}".formatted(name, text);
    }

    private static String stream(String name) throws Exception {
        var all = new StringBuilder();
        int chunks = 0;
        try (var lines = HTTP.send(request(true), BodyHandlers.ofLines()).body()) {
            for (var i = lines.iterator(); i.hasNext(); ) {
                String text = text(i.next());
                if (text.isEmpty()) {
                    continue;
                }
                if (chunks++ == 0) {
                    System.out.println("{\"name\":\"%s\",\"event\":\"chunk\"}".formatted(name));
                }
                all.append(text);
            }
        }
        return "{\"name\":\"%s\",\"ok\":true,\"text\":\"%s\",\"chunks\":%d}".formatted(name, all, chunks);
    }

    private static HttpRequest request(boolean stream) {
        String body = """
            {"model":"gpt-4o-mini","stream":%s,"messages":[{"role":"user","content":"Say hello."}]}""".formatted(stream);
        return HttpRequest.newBuilder(URI.create(System.getenv("OPENAI_BASE_URL") + "/chat/completions"))
            .header("Authorization", "Bearer " + System.getenv("OPENAI_API_KEY"))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
    }

    /** The text, still escaped as JSON, or "" where there is none. */
    private static String text(String json) {
        Matcher m = TEXT.matcher(json);
        return m.find() ? m.group(1) : "";
    }

    private static String failed(String name, String type, int status, String message) {
        return "{\"name\":\"%s\",\"ok\":false,\"error\":{\"type\":\"%s\",\"status\":%d,\"message\":\"%s\"}}"
            .formatted(name, type, status, message);
    }

    private static String escape(String s) {
        return s.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n");
    }
}
