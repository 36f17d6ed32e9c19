import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * The official client, driven from Python: prints one tab-separated line per event.
 *
 * <pre>
 * send    NAMESRV TOPIC sync|async|oneway|batch COUNT TAG BODY_BYTES   -> SENT body status msgId offsetMsgId queueId queueOffset
 * consume NAMESRV TOPIC GROUP EXPRESSION COUNT SECONDS MODE            -> GOT body tag keys queueId queueOffset reconsumeTimes
 *         MODE: plain | orderly | fail-once (every message is refused the first time)
 * </pre>
 */
public class Interop {
    private static void line(Object... fields) {
        StringBuilder text = new StringBuilder();
        for (Object field : fields) {
            if (text.length() > 0) text.append('\t');
            text.append(field == null ? "" : field.toString());
        }
        synchronized (System.out) {
            System.out.println(text);
            System.out.flush();
        }
    }

    private static void sent(Message message, SendResult result) {
        String body = new String(message.getBody(), StandardCharsets.UTF_8);
        line("SENT", body.substring(0, Math.min(body.length(), 40)).trim(), result.getSendStatus(), result.getMsgId(),
            result.getOffsetMsgId(), result.getMessageQueue().getQueueId(), result.getQueueOffset());
    }

    private static Message make(String topic, String tag, String mode, int index, int bytes) {
        StringBuilder body = new StringBuilder(String.format(Locale.ROOT, "%s-%06d", mode, index));
        while (body.length() < bytes) body.append(' ');
        return new Message(topic, tag, "key-" + index, body.toString().getBytes(StandardCharsets.UTF_8));
    }

    private static void send(String[] a) throws Exception {
        String topic = a[2], mode = a[3], tag = a[5];
        int count = Integer.parseInt(a[4]), bytes = Integer.parseInt(a[6]);
        DefaultMQProducer producer = new DefaultMQProducer("interop_producer");
        producer.setNamesrvAddr(a[1]);
        producer.setSendMsgTimeout(10_000);
        producer.start();
        CountDownLatch done = new CountDownLatch(count);
        AtomicInteger failed = new AtomicInteger();
        List<Message> batch = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            Message message = make(topic, tag, mode, i, bytes);
            if (mode.equals("sync")) {
                sent(message, producer.send(message));
            } else if (mode.equals("oneway")) {
                producer.sendOneway(message);
            } else if (mode.equals("async")) {
                producer.send(message, new SendCallback() {
                    @Override public void onSuccess(SendResult result) { sent(message, result); done.countDown(); }
                    @Override public void onException(Throwable e) { line("FAILED", e); failed.incrementAndGet(); done.countDown(); }
                });
            } else {
                batch.add(message);
                if (batch.size() == 20 || i == count - 1) {
                    SendResult result = producer.send(batch);
                    line("BATCH", batch.size(), result.getSendStatus(), result.getMsgId(), result.getOffsetMsgId(),
                        result.getMessageQueue().getQueueId(), result.getQueueOffset());
                    batch = new ArrayList<>();
                }
            }
        }
        if (mode.equals("async") && !done.await(60, TimeUnit.SECONDS)) line("FAILED", "timed out");
        if (mode.equals("oneway")) Thread.sleep(1000);
        producer.shutdown();
        line("DONE", failed.get());
    }

    private static void got(MessageExt m) {
        String body = new String(m.getBody(), StandardCharsets.UTF_8);
        line("GOT", body.substring(0, Math.min(body.length(), 40)).trim(), m.getTags(), m.getKeys(), m.getQueueId(), m.getQueueOffset(),
            m.getReconsumeTimes(), m.getTopic(), m.getMsgId());
    }

    private static void consume(String[] a) throws Exception {
        int count = Integer.parseInt(a[5]);
        String mode = a[7];
        CountDownLatch done = new CountDownLatch(count);
        ConcurrentLinkedQueue<String> refused = new ConcurrentLinkedQueue<>();
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(a[3]);
        consumer.setNamesrvAddr(a[1]);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(a[2], a[4]);
        if (mode.equals("orderly")) {
            consumer.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
                for (MessageExt m : messages) { got(m); done.countDown(); }
                return ConsumeOrderlyStatus.SUCCESS;
            });
        } else {
            consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
                for (MessageExt m : messages) {
                    if (mode.equals("fail-once") && m.getReconsumeTimes() == 0) {
                        line("REFUSED", new String(m.getBody(), StandardCharsets.UTF_8).trim());
                        context.setDelayLevelWhenNextConsume(1);
                        return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                    }
                    got(m);
                    done.countDown();
                }
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
        }
        consumer.start();
        line("STARTED");
        boolean all = done.await(Long.parseLong(a[6]), TimeUnit.SECONDS);
        if (all) Thread.sleep(300); // more than COUNT would show as duplicates
        consumer.shutdown();
        line("DONE", all);
    }

    public static void main(String[] a) throws Exception {
        try {
            if (a[0].equals("send")) send(a); else consume(a);
        } catch (Exception e) {
            line("FAILED", e.toString().replace('\n', ' '));
            line("DONE", "failed");
            System.exit(1);
        }
        System.exit(0);
    }
}
